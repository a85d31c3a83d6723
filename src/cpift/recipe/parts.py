"""The parts of a recipe: a task, and the settings of each stage. Defaults are the paper's method."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from cpift.data.shapes import SHAPES, known_columns
from cpift.errors import CpiftError, nearest
from cpift.method.interpolations import INTERPOLATIONS, check_weight
from cpift.method.overlap_rules import OVERLAP_RULES
from cpift.metrics import named
from cpift.metrics.answers import AnswerPattern
from cpift.recipe.adapter import Adapter, mergeable
from cpift.recipe.backbones import BACKBONES, BackboneSource
from cpift.recipe.part import CONFIG, no_truth_for_a_number
from cpift.recipe.selections import SELECTIONS, Selection


class Part(BaseModel):
    """A part of a recipe: no unknown keys, no change after it was read."""

    model_config = CONFIG
    _numbers = field_validator("*", mode="before")(no_truth_for_a_number)


def _known_columns(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if name not in (columns := known_columns()):
            near = nearest(name, columns)
            hint = f"did you mean {near!r}?" if near else "it gives our name of a column theirs: {prompt: question}"
            raise ValueError(f"{name!r} is no column of a known shape; {hint}")
    return value


def _known_metric(value: str) -> str:
    try:
        named(value)
    except CpiftError as error:
        raise ValueError(str(error)) from error
    return value


OverlapName = Annotated[str, AfterValidator(OVERLAP_RULES.check)]
InterpolationName = Annotated[str, AfterValidator(INTERPOLATIONS.check)]
Columns = Annotated[dict[str, str], AfterValidator(_known_columns)]
MergedAdapter = Annotated[Adapter | None, AfterValidator(mergeable)]
ShapeName = Annotated[str, AfterValidator(SHAPES.check)]
SelectionName = Annotated[str, AfterValidator(SELECTIONS.check)]
MetricName = Annotated[str, AfterValidator(_known_metric)]


class ModelPart(Part):
    """``model:`` as a record."""

    path: str
    """A local folder, a hub id, perhaps with @revision, or a GGUF file."""
    revision: str | None = None
    """Branch, tag or commit of a model from the hub."""
    attn_implementation: str | None = None
    """How attention is computed, by transformers' name."""


class Source(Part):
    """One of several sets of a task. What is not given is the task's."""

    path: str
    """A file, a folder, a data set id, or path/to/dataset_info.json#name."""
    config: str | None = None
    """Configuration of a data set from the hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set from the hub."""
    split: str | None = None
    """Split of a data set from the hub, or an expression such as train[:2000]."""
    columns: Columns = {}
    """Our name of a column, and theirs: {question: problem, answer: solution}."""
    shape: ShapeName | None = None
    """Shape of the rows, where their columns fit several."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """How often each training row counts: 2 is twice, 0.5 a half of the rows, drawn by seed."""


def _kind_of_rows(value: Any) -> str:
    return _SETS if isinstance(value, list) else _NUMBER if isinstance(value, int) else _PATH


_NUMBER, _PATH, _SETS = "literal[number]", "literal[path]", "list[sets]"  # tags, which no message shows
Rows = Annotated[
    Annotated[int, Tag(_NUMBER)] | Annotated[str, Tag(_PATH)] | Annotated[list[Source], Tag(_SETS)],
    Discriminator(_kind_of_rows),
]


class Task(Part):
    """One task: where its rows come from and how it is scored."""

    generate: str | None = None
    """Name of a reasoning_gym task; ``train`` and ``eval`` are then numbers of rows."""
    train: Rows
    """A file, a folder, a Hugging Face data set id, a list of these, or with ``generate`` the number of rows."""
    eval: Rows
    """As ``train``; or a number of rows: generated, or else split off the training rows by seed."""
    split: str = "train"
    """Split of a data set from the hub, or an expression such as train[:2000]."""
    eval_split: str = "test"
    """Split, where ``eval`` is a data set from the hub."""
    train_rows: int | None = Field(default=None, gt=0)
    """Use only this number of training rows, drawn by seed."""
    metric: MetricName | None = None
    """A metric of docs/metrics.md, or a function of your own as package.module:function. By default the one for rows
    with answers where they have them, else the one for rows without."""
    pattern: str | list[str] | None = None
    """Regular expression whose first group is the answer within a text, as in gsm8k: '#### (.+)'. Of several, the first
    that finds something counts."""
    match: Literal["last", "first"] = "last"
    """Which match of the pattern is the answer."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Longest generated answer, in tokens."""
    config: dict[str, Any] | str = {}
    """Settings of the reasoning_gym task; or the configuration of a data set from the hub, such as main."""
    licence: str | None = None
    """Licence of the data, for the model card."""
    revision: str | None = None
    """Branch, tag or commit of a data set from the hub."""
    columns: Columns = {}
    """Our name of a column, and theirs: {question: problem, answer: solution}."""
    shape: ShapeName | None = None
    """Shape of the rows, where their columns fit several."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _as_sources(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, dict) else value
        if listed == []:
            raise ValueError("is an empty list")
        return [{"path": one} if isinstance(one, str) else one for one in listed] if isinstance(listed, list) else value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == []:
            raise ValueError("is an empty list")
        try:
            AnswerPattern.of(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is no regular expression ({error})") from error
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.generate is not None and not (type(self.train) is int and type(self.eval) is int):
            raise ValueError("with generate, train and eval are numbers of rows")
        if self.generate is None and isinstance(self.train, int):
            raise ValueError("train is a number, but there is nothing to generate; name a file or add generate:")
        if self.generate is None and self.config and not isinstance(self.config, str):
            raise ValueError("config is a table for generated tasks only; of a data set it is a name, such as main")
        if self.generate is not None:
            for key in ("revision", "columns", "shape"):
                if getattr(self, key):
                    raise ValueError(f"{key} is for sets of rows, and the rows are generated")
            if isinstance(self.config, str):
                raise ValueError("config is a table of settings for generated tasks")
        if isinstance(self.eval, list) and any(source.weight != 1 for source in self.eval):
            raise ValueError("weight is for training rows; leave it out of eval")
        for name in ("train", "eval"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} is {value}; at least one row is needed")
        return self

    def sources(self, part: Literal["train", "eval"]) -> list[Source]:
        """The sets of the training or evaluation rows, with the task's own settings where they have none."""
        value = getattr(self, part)
        listed = value if isinstance(value, list) else [Source(path=str(value))]
        own = {
            "config": self.config if isinstance(self.config, str) else None,
            "revision": self.revision,
            "split": self.split if part == "train" else self.eval_split,
            "columns": self.columns,
            "shape": self.shape,
        }
        return [s.model_copy(update={k: v for k, v in own.items() if not getattr(s, k)}) for s in listed]

    @property
    def answer_pattern(self) -> AnswerPattern | None:
        """Where an answer is within a text; None: the text is the answer."""
        return AnswerPattern.of(self.pattern, self.match)

    def settings(self) -> dict[str, Any]:
        """What the rows and scores are made of. Newer keys count only where they are given: older runs stay as they are."""
        newer = {
            name for name in ("revision", "columns", "shape", "match") if getattr(self, name) in (None, {}, "last")
        }
        return self.model_dump(exclude={"licence", *newer})


class _Trained(Part):
    training: dict[str, Any] = {}
    """Overrides of the common ``training`` for this stage."""


class Probe(_Trained):
    """Stage 1, the short fine-tuning of each task alone."""

    steps: Literal["auto"] | int = "auto"
    """Optimizer steps, the same for every task; auto: one epoch of the mean task."""
    adapter: Adapter | None = None
    """Train an adapter in place of all parameters: {type: lora, r: 16}; docs/adapters.md."""

    @field_validator("steps")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "auto" and not 1 <= value <= 10**9:
            raise ValueError("steps must be auto or a number from 1 to 10^9")
        return value


class RegionPart(Part):
    """Which updates are core."""

    percent: float = Field(default=1.0, gt=0, le=100)
    """Share of all parameters, in per cent."""
    exclude: list[str] = []
    """Shell-style patterns of parameters that do not count, such as '*embed_tokens*'."""
    select: SelectionName = "largest"
    """Which positions: those moved most, or another choice of docs/method.md."""

    @property
    def entry(self) -> Selection:
        """Its entry in the table of selections."""
        return SELECTIONS[self.select]


class Group(Part):
    """Which tasks share a stage, and the order of the stages."""

    threshold: float = Field(default=0.1, ge=0, le=1)
    """Jaccard overlap of two core regions from which their tasks are grouped (τ)."""
    order: Literal["random"] | list[list[str]] = "random"
    """random, by seed; or a list of lists of tasks: groups and their order."""


class Backbone(_Trained):
    """The model into which the probes are fused."""

    source: str = Field(default="multi_stage", alias="from")
    """A name of the table of sources (docs/method.md), or a checkpoint."""

    epochs: Literal["auto"] | float = "auto"
    """Passes over each task's rows; auto: as many as a probe makes. Short probes find the cores, too."""
    adapter: MergedAdapter = None
    """Train an adapter, merged at the end of each stage, in place of all parameters; docs/adapters.md."""

    @field_validator("epochs")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value != "auto" and not 0 < value <= 1e6:
            raise ValueError("epochs must be auto or a number above 0")
        return value

    model_config = ConfigDict(populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True)

    @property
    def entry(self) -> BackboneSource | None:
        """Its entry in the table of sources; None: a checkpoint."""
        return BACKBONES.get(self.source)

    @property
    def trained(self) -> bool:
        """Is a backbone trained, rather than given?"""
        return self.entry is not None and self.entry.trained

    @property
    def is_base(self) -> bool:
        """Is the backbone the base itself?"""
        return self.entry is not None and not self.entry.trained

    @property
    def mixes(self) -> bool:
        """Is a backbone trained on all tasks together?"""
        return self.entry is not None and self.entry.mixes

    def stages(self, groups: list[list[str]], tasks: list[str]) -> list[list[str]]:
        """The tasks of each stage that trains the backbone.

        Args:
            groups: of tasks, in the order of the stages.
            tasks: all, in the recipe's order.
        """
        return self.entry.stages(groups, tasks) if self.entry is not None else []


class Fuse(Part):
    """How the probes are fused into the backbone."""

    overlap: OverlapName = "largest"
    """Which task's value a position in several regions takes: a rule of docs/fusion.md."""
    interpolation: InterpolationName = "slerp"
    """How the rest is interpolated: a name of docs/fusion.md."""
    space: Literal["weights", "updates"] = "weights"
    """What is interpolated."""
    vector: Literal["tensor", "model"] = "tensor"
    """What one interpolation is taken over."""
    weight: Literal["equal"] | float = "equal"
    """equal, or a number from 0 to 1; docs/fusion.md has what it means to each interpolation."""
    transplant: bool = True
    """Put each task's own values at its core positions; without, as a control, all is interpolated."""

    @field_validator("weight")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        if value != "equal" and not 0 <= value <= 1:
            raise ValueError("weight must be equal or a number from 0 to 1")
        return value

    @model_validator(mode="after")
    def _weight_is_read(self) -> Fuse:
        check_weight(self.interpolation, self.weight)
        return self


class Refine(_Trained):
    """Stage 4, the last, brief fine-tuning, group by group."""

    examples_per_task: int = Field(default=64, gt=0)
    """Rows of each task, drawn by seed."""
    epochs: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    """Passes over these rows."""
    data: Literal["group", "mixed"] = "group"
    """Stage k sees the rows of the tasks of group k, or of all tasks."""
    resample: bool = False
    """With ``data: mixed``, other rows for each stage; without, all stages see the same sample."""
    freeze: bool = True
    """Keep the core regions of earlier groups bit-identical."""
    adapter: MergedAdapter = None
    """Train an adapter, merged at the end, in place of all parameters: {type: lora, r: 16}; docs/adapters.md."""


class Output(Part):
    """What a finished run leaves."""

    dtype: Literal["base", "float32", "bfloat16", "float16"] | None = None
    """Of the final model; base: as most of the base's weights are. By default as it was trained, float32."""
    keep: Literal["all", "final"] = "all"
    """all: every stage's model; final: the final model alone. What a later stage needs then is made again."""


class Arrivals(_Trained):
    """Tasks that are added to the model one after the other. A bare list is short for its ``order``."""

    order: list[str] = Field(min_length=1)
    """The tasks to add, first to last. Tasks of the recipe that are not listed are kept: replayed and scored."""
    epochs: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    """Passes over the rows of the task that arrives."""
    train: Literal["all", "inside"] = "all"
    """all: whatever is not frozen. inside: find the core so, then train again from the model before, the core alone; the
    rest keeps every bit, and nothing is averaged."""
    examples_per_task: int = Field(default=64, ge=0)
    """Rows of each earlier arrival that stay at hand for replay; 0: none."""
    adapter: MergedAdapter = None
    """Train an adapter, merged at the end, in place of all parameters: {type: lora, r: 16}; docs/adapters.md."""


class Protect(Part):
    """What keeps the abilities of the model to which tasks are added."""

    by: Literal["auto", "none", "update", "fisher", "magnitude_gradient", "magnitude"] = "auto"
    """How the protected region is chosen: by \\|model − base\\|, or on the kept rows by Fisher information or \\|θ·g\\|.
    auto: update where base is given, otherwise none. Regions that the model carries are protected in any case."""
    percent: float = Field(default=1.0, gt=0, lt=100)
    """Share of all parameters that is protected, in per cent."""
    unit: Literal["element", "column"] = "element"
    """What is protected: single parameters, or whole columns of weights."""
    freeze: bool = True
    """Keep protected regions, and the cores of earlier arrivals, bit-identical."""
    replay: float = Field(default=0.5, ge=0, lt=1)
    """Share of the training rows that are kept rows, where there are any; 0: none."""
    anchor: float = Field(default=0.0, ge=0, le=1e4)
    """Factor β of the divergence from the model before on the prompts of the training rows; 0: off. Needs no old rows,
    and memory for a second model."""
    average: float = Field(default=0.75, gt=0, le=1)
    """Weight of the trained model in its average with the model before; 1: no averaging."""
    interpolation: Literal["slerp", "linear"] = "slerp"
    """How the two are averaged."""
    transplant: bool = True
    """Put the core of the new task back unchanged after averaging."""
