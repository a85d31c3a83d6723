"""The recipe's settings of each stage of a run. Defaults are the paper's method."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from cpift.method.criteria import CRITERIA, FORMER_NAMES, Criterion, Needs
from cpift.method.interpolations import INTERPOLATIONS, check_weight
from cpift.method.overlap_rules import OVERLAP_RULES
from cpift.recipe.adapter import Adapter, MergedAdapter
from cpift.recipe.backbones import BACKBONES, BackboneSource
from cpift.recipe.part import Part, Trained

OverlapName = Annotated[str, AfterValidator(OVERLAP_RULES.check)]
InterpolationName = Annotated[str, AfterValidator(INTERPOLATIONS.check)]
CriterionName = Annotated[str, AfterValidator(CRITERIA.check)]


class Probe(Trained):
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
    """Which positions are core."""

    percent: float = Field(default=1.0, gt=0, le=100)
    """Share of all parameters, in per cent."""
    exclude: list[str] = []
    """Shell-style patterns of parameters that do not count, such as '*embed_tokens*'."""
    include: list[str] = []
    """Shell-style patterns; with any, only parameters that match one count, such as '*mlp*'."""
    by: CriterionName = "update"
    """Which positions: those moved most, or another criterion of docs/method.md. It was called select."""
    unit: Literal["element", "column"] = "element"
    """What is core: single parameters, or whole columns of weights by their mean score."""
    rows: int | None = Field(default=None, gt=0)
    """Training rows of each task, drawn by seed, that a criterion by rows is taken on; null: all."""

    @model_validator(mode="before")
    @classmethod
    def _former_key(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if "select" in data:
            if "by" in data:
                raise ValueError("select is the former name of by, and both are given; leave select out")
            data["by"] = data.pop("select")
        if isinstance(data.get("by"), str):
            data["by"] = FORMER_NAMES.get(data["by"], data["by"])
        return data

    @model_validator(mode="after")
    def _rows_are_read(self) -> RegionPart:
        if self.rows is not None and self.entry.needs is not Needs.ROWS:
            raise ValueError(f"rows is not read by {self.by}; leave it out")
        return self

    @property
    def entry(self) -> Criterion:
        """Its entry in the table of criteria."""
        return CRITERIA[self.by]


class Group(Part):
    """Which tasks share a stage, and the order of the stages."""

    threshold: float = Field(default=0.1, ge=0, le=1)
    """Jaccard overlap of two core regions from which their tasks are grouped (τ)."""
    order: Literal["random"] | list[list[str]] = "random"
    """random, by seed; or a list of lists of tasks: groups and their order."""


class Backbone(Trained):
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
    every: int | None = Field(default=None, gt=0)
    """While refining: optimizer steps after which the model is averaged with the fused one, and after the last step;
    with weight and interpolation as above, equal being a half. null: never."""

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

    @model_validator(mode="after")
    def _can_be_done_in_training(self) -> Fuse:
        if self.every is not None:
            if self.interpolation not in ("slerp", "linear"):
                raise ValueError(f"every averages by slerp or linear while training; {self.interpolation} is neither")
            if self.interpolation == "slerp" and (self.space, self.vector) != ("weights", "tensor"):
                raise ValueError(
                    "every averages weights, tensor by tensor; leave space and vector as they are, or it out"
                )
        return self


class RefineAnchor(Part):
    """What a refine stage is held to."""

    kl: float = Field(default=0.0, ge=0, le=1e4)
    """Factor β of the divergence (KL) from the model before the stage, on the prompts of the training rows; 0: off."""


class Refine(Trained):
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
    train: Literal["outside", "inside"] = "outside"
    """outside: whatever is not frozen. inside: the core regions of the stage's own tasks alone."""
    replay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows of a stage that are rows of earlier groups, examples_per_task of each task at most; 0: none."""
    anchor: RefineAnchor = RefineAnchor()
    """Hold a stage to the model before it: {kl: 0.1}. Needs memory for a second model."""
    adapter: MergedAdapter = None
    """Train an adapter, merged at the end, in place of all parameters: {type: lora, r: 16}; docs/adapters.md."""

    @model_validator(mode="after")
    def _replay_is_read(self) -> Refine:
        if self.replay and self.data == "mixed":
            raise ValueError("replay: with data: mixed each stage sees the rows of all tasks; leave one of them out")
        return self
