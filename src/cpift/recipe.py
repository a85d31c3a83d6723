"""What a recipe may say. Unknown keys are refused, with the nearest known one."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from cpift.errors import CpiftError

_LIMIT = 2**20  # bytes of a recipe
STAGES = ("probe", "identify", "group", "backbone", "fuse", "refine", "evaluate")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"is {str(value).lower()}, where a number or text is meant")
        return value


class Task(_Part):
    """One task: where its rows come from and how it is scored."""

    generate: str | None = None
    """Name of a reasoning_gym task; ``train`` and ``eval`` are then numbers of rows."""
    train: int | str
    """A .jsonl/.json/.parquet file, a Hugging Face data set id, or with ``generate`` the number of rows."""
    eval: int | str
    """A file, a data set id, or a number of rows: generated, or else split off the training rows by seed."""
    split: str = "train"
    """Split of a data set from the hub."""
    eval_split: str = "test"
    """Split, where ``eval`` is a data set from the hub."""
    train_rows: int | None = Field(default=None, gt=0)
    """Use only so many training rows, drawn by seed."""
    metric: Literal["exact_match", "generate", "loss"] | None = None
    """exact_match, generate or loss; by default exact_match where the rows have answers, else loss."""
    pattern: str | None = None
    """Regular expression whose first group is the answer within a generated text, as in gsm8k: '#### (.+)'."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Longest generated answer, in tokens."""
    config: dict[str, Any] = {}
    """Settings of the reasoning_gym task."""
    licence: str | None = None
    """Licence of the data, for the model card."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is no regular expression ({error})") from error
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.generate is not None and not (type(self.train) is int and type(self.eval) is int):
            raise ValueError("with generate, train and eval are numbers of rows")
        if self.generate is None and isinstance(self.train, int):
            raise ValueError("train is a number, but there is nothing to generate; name a file or add generate:")
        if self.generate is None and self.config:
            raise ValueError("config is for generated tasks only")
        for name in ("train", "eval"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} is {value}; at least one row is needed")
        return self


class _Trained(_Part):
    training: dict[str, Any] = {}
    """Overrides of the common ``training`` for this stage."""


class Probe(_Trained):
    """Stage 1, the short fine-tuning of each task alone."""

    steps: Literal["auto"] | int = "auto"
    """Optimizer steps, the same for every task; auto: one epoch of the mean task."""

    @field_validator("steps")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "auto" and not 1 <= value <= 10**9:
            raise ValueError("steps must be auto or a number from 1 to 10^9")
        return value


class RegionPart(_Part):
    """Which updates are core."""

    percent: float = Field(default=1.0, gt=0, le=100)
    """Share of all parameters, in per cent."""
    exclude: list[str] = []
    """Shell-style patterns of parameters that do not count, such as '*embed_tokens*'."""
    select: Literal["largest", "random"] = "largest"
    """Which positions: those moved most, or, as a control, as many at random."""


class Group(_Part):
    """Which tasks share a stage, and the order of the stages."""

    threshold: float = Field(default=0.1, ge=0, le=1)
    """Jaccard overlap of two core regions from which their tasks are grouped (τ)."""
    order: Literal["random"] | list[list[str]] = "random"
    """random, by seed; or a list of lists of tasks: groups and their order."""


class Backbone(_Trained):
    """The model into which the probes are fused."""

    source: str = Field(default="multi_stage", alias="from")
    """multi_stage, pretrained, multi_task, or a checkpoint."""
    epochs: Literal["auto"] | float = "auto"
    """Passes over each task's rows; auto: as many as a probe makes. Short probes find the cores, too."""

    @field_validator("epochs")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value != "auto" and not 0 < value <= 1e6:
            raise ValueError("epochs must be auto or a number above 0")
        return value

    model_config = ConfigDict(populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class Fuse(_Part):
    """How the probes are fused into the backbone."""

    overlap: Literal["largest", "order", "mean"] = "largest"
    """Which task's value a position in several regions takes: largest |Δ|, last in order, or the mean."""
    interpolation: Literal["slerp", "karcher", "linear", "sum"] = "slerp"
    """One task after the other on the sphere, all at once on the sphere, linear, or all updates added up."""
    space: Literal["weights", "updates"] = "weights"
    """What is interpolated."""
    vector: Literal["tensor", "model"] = "tensor"
    """What one interpolation is taken over."""
    weight: Literal["equal"] | float = "equal"
    """equal: ω = 1/(i+1) for the i-th task; or a fixed ω. With sum: the factor of each task's update, equal is 1."""
    transplant: bool = True
    """Put each task's own values at its core positions; without, as a control, all is interpolated."""

    @field_validator("weight")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        if value != "equal" and not 0 <= value <= 1:
            raise ValueError("weight must be equal or a number from 0 to 1")
        return value

    @model_validator(mode="after")
    def _karcher_is_equal(self) -> Fuse:
        if self.interpolation == "karcher" and self.weight != "equal":
            raise ValueError("karcher takes all models alike; leave weight at equal")
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


class Recipe(_Part):
    """A whole run: base model, tasks, and the settings of each stage. Defaults are the paper's method."""

    model: str
    """A local folder, a hub id, or a GGUF file."""
    tasks: dict[str, Task]
    """Tasks by name; their order is the order of fusion."""
    probe: Probe = Probe()
    region: RegionPart = RegionPart()
    group: Group = Group()
    backbone: Backbone = Backbone()
    fuse: Fuse = Fuse()
    refine: Refine = Refine()
    training: dict[str, Any] = {}
    """Any field of TRL's SFTConfig, for all trainings."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of everything that is drawn: data, order, training."""
    trust_remote_code: bool = False
    """Run code that the model's repository carries."""

    @field_validator("backbone", mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @field_validator("tasks")
    @classmethod
    def _named(cls, value: dict[str, Task]) -> dict[str, Task]:
        if not value:
            raise ValueError("no task is given")
        for name in value:
            if (
                not name
                or name.startswith(".")
                or name != Path(name).name
                or len(name.encode("utf-8", "replace")) > 200
                or "\\" in name
            ):
                raise ValueError(f"{name!r} cannot be the name of a task: it names folders, too")
            if not name.isprintable():
                raise ValueError(f"{name!r} cannot be the name of a task: it has unprintable characters")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Recipe:
        order = self.group.order
        if order != "random" and (sorted(t for g in order for t in g) != sorted(self.tasks) or not all(order)):
            raise ValueError(f"group.order: must hold each task once, and no empty group ({', '.join(self.tasks)})")
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Read a YAML recipe. Relative paths in it count from its folder. ``overrides`` have dotted keys.

        Raises :class:`CpiftError` that names every problem.
        """
        path = Path(path)
        if os.path.exists(path) and not os.path.isdir(path):
            if not os.path.isfile(path):  # a pipe or a device would keep us waiting
                raise CpiftError(f"{path}: is no file; cpift init writes a recipe to start from")
            if path.stat().st_size > _LIMIT:
                raise CpiftError(f"{path}: is too large for a recipe; cpift init writes one to start from")
        try:
            data = read_yaml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CpiftError(
                f"{path}: cannot be read ({error.strerror}); cpift init writes one to start from"
            ) from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise CpiftError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
        if not isinstance(data, dict):
            raise CpiftError(f"{path}: a recipe is a table of keys; cpift init writes one to start from")
        for key, value in (overrides or {}).items():
            _set(data, key, value)
        recipe = cls.parse(data, str(path))
        return recipe._resolved(path.parent)

    @classmethod
    def parse(cls, data: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """Check a table of keys. Raises :class:`CpiftError` that names every problem."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise CpiftError(f"{source}: " + "; ".join(_explain(problem) for problem in error.errors())) from None

    def _resolved(self, folder: Path) -> Recipe:
        """Paths that exist below ``folder``, made absolute."""

        def place(value: Any) -> Any:
            found = folder / value if isinstance(value, str) else None
            return (
                str(found.absolute())
                if found is not None and (os.path.exists(found) or _is_file_name(value))
                else value
            )

        tasks = {
            n: t.model_copy(update={"train": place(t.train), "eval": place(t.eval)}) for n, t in self.tasks.items()
        }
        backbone = self.backbone
        if backbone.source not in ("multi_stage", "pretrained", "multi_task"):
            backbone = backbone.model_copy(update={"source": place(backbone.source)})
        return self.model_copy(update={"model": place(self.model), "tasks": tasks, "backbone": backbone})

    def changed(self, overrides: Mapping[str, Any]) -> Recipe:
        """This recipe with some keys, dotted, set to other values. Raises :class:`CpiftError` as :meth:`load` does."""
        data = self.model_dump(by_alias=True)
        for key, value in overrides.items():
            _set(data, key, value)
        return self.parse(data)

    def dump(self) -> str:
        """As YAML, every default written out."""
        return yaml.safe_dump(self.model_dump(by_alias=True), sort_keys=False, allow_unicode=True)

    def training_of(self, stage: Literal["probe", "backbone", "refine"]) -> dict[str, Any]:
        """The common training settings with the stage's own on top."""
        return {**self.training, **getattr(self, stage).training}


def read_yaml(text: str) -> Any:
    """YAML as recipes have it. Raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """YAML with neither tags nor aliases, which a recipe does not need, and duplicate keys refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"aliases are not supported, line {line}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.YAMLError(f"the key {name!r} is not text, line {key.start_mark.line + 1}")
            if name in seen:
                raise yaml.YAMLError(f"the key {name!r} stands twice, line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 takes 1e-4 for text; everyone who writes it means the number, as YAML 1.2 does.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def origins(path: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Dotted keys that a recipe file which loads, or the overrides, give: "recipe" or "command line"; others are defaults."""
    found = dict.fromkeys(_leaves(read_yaml(Path(path).read_text(encoding="utf-8"))), "recipe")
    for key, value in (overrides or {}).items():
        found |= dict.fromkeys(_leaves(value, key), "command line")
    return found


def _leaves(value: Any, where: str = "") -> list[str]:
    """Dotted keys of all that is no table; a bare word for the backbone is where it comes from."""
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{where}.{key}" if where else key)]
    return ["backbone.from" if where == "backbone" and isinstance(value, str) else where]


def check_part(part: type[BaseModel], data: Mapping[str, Any]) -> None:
    """Check options given elsewhere than in a recipe by one of its parts. Raises :class:`CpiftError`."""
    try:
        part.model_validate(data)
    except ValidationError as error:
        raise CpiftError("; ".join(_explain(problem) for problem in error.errors())) from None


def _is_file_name(value: str) -> bool:
    return value.endswith((".jsonl", ".json", ".parquet", ".gguf")) or value.startswith(("./", "../"))


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if isinstance(inner, str) and parent == "backbone":
            inner = data[parent] = {"from": inner}
        if not isinstance(inner, dict):
            raise CpiftError(f"--set {key}: {parent} is not a table")
        data = inner
    data[last] = value


def _explain(problem: Any) -> str:
    where = ".".join(
        str(part) for part in problem["loc"] if not str(part).startswith(("literal[", "list[", "constrained"))
    )
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        near = difflib.get_close_matches(key, _known(problem["loc"][:-1]), n=1, cutoff=0.5)
        return f"unknown key {where!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if problem["type"] == "missing":
        return f"{where!r} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    return (
        f"{where}: {message} (got {problem['input']!r})"
        if not isinstance(problem["input"], dict)
        else f"{where}: {message}"
    )


def _known(location: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for part in location:
        if model is Recipe and part == "tasks":
            return [f.alias or n for n, f in Task.model_fields.items()]
        model = model.model_fields[part].annotation
    return [field.alias or name for name, field in model.model_fields.items()]
