"""What a recipe may say. Unknown keys are refused, with the nearest known one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cpift.data.chat import ChatSettings
from cpift.data.files import is_file_name
from cpift.data.mixture import check_mix
from cpift.errors import CpiftError, did_you_mean
from cpift.method.criteria import Needs
from cpift.recipe.arrivals import Arrivals, Protect
from cpift.recipe.generation import Evaluate
from cpift.recipe.guard import DEFAULT, GuardSets, check_guard
from cpift.recipe.model import DeviceMap, Dtype, ModelPart, Output, check_model_keys
from cpift.recipe.part import Part
from cpift.recipe.stages import Backbone, Fuse, Group, Probe, Refine, RegionPart
from cpift.recipe.task import Source, Task
from cpift.recipe.yaml import read_yaml, set_key

_LIMIT = 2**20  # bytes of a recipe
STAGES = ("probe", "identify", "group", "backbone", "fuse", "refine", "evaluate")

_OSF_REMEDIES = {"protect.freeze": "set it to false"}

Checked = TypeVar("Checked", bound=BaseModel)


class Recipe(Part):
    """A whole run: base model, tasks, and the settings of each stage. Defaults are the paper's method."""

    model: str
    """A local folder, a hub id, perhaps with @revision, an adapter, or a GGUF file; or a record {path, revision, attn_implementation,
    dtype, device_map, quantization}."""
    revision: str | None = None
    """Branch, tag or commit of a model from the hub."""
    attn_implementation: str | None = None
    """How attention is computed in training and scoring: sdpa, eager, flash_attention_2; by default transformers' choice."""
    dtype: Dtype = "float32"
    """Of the weights in training: float32, or bfloat16, which takes half the memory and rounds the updates."""
    device_map: DeviceMap | None = None
    """How transformers spreads the layers over the devices of one process; by default all lie on one."""
    quantization: Literal["4bit"] | None = None
    """Of the base beneath the probes; for adapters of the type qlora, which load it so in any case."""
    tasks: dict[str, Task]
    """Tasks by name; their order is the order of fusion."""
    probe: Probe = Probe()
    region: RegionPart = RegionPart()
    group: Group = Group()
    backbone: Backbone = Backbone()
    fuse: Fuse = Fuse()
    refine: Refine = Refine()
    arrivals: Arrivals | None = None
    """Add these tasks, one after the other, to ``model``; in place of probes, groups, backbone, fusion and refinement."""
    base: str | None = None
    """With arrivals: the checkpoint that ``model`` was fine-tuned from, a folder or a hub id; of an adapter by default
    the one that it names."""
    protect: Protect = Protect()
    guard: GuardSets = DEFAULT
    """What must not be lost, scored for every model: built-in sets by name, or files with a metric; none: off."""
    lm_eval_tasks: str | None = None
    """A folder of task files for lm-eval, beside its own."""
    evaluate: Evaluate = Evaluate()
    output: Output = Output()
    training: dict[str, Any] = Field(default={})
    """Any field of TRL's SFTConfig, for all trainings."""
    chat_template: str | None = None
    """Chat template in place of the tokenizer's own: a file, or the text itself. Saved with the models."""
    chat_template_kwargs: dict[str, Any] = Field(default={})
    """Variables of the chat template for all rows, such as enable_thinking: false; a row's own come on top."""
    mix: str | dict[str, float] = "rows"
    """Shares of tasks that are trained together: rows, tokens, equal, or a weight for each task."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of everything that is drawn: data, order, training."""
    trust_remote_code: bool = False
    """Run code that the model's repository carries."""

    @model_validator(mode="before")
    @classmethod
    def _record_of_the_model(cls, data: Any) -> Any:
        """A record of the model as the keys that it stands for."""
        if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
            return data
        try:
            record = ModelPart.model_validate(data["model"])
        except ValidationError as error:
            problems = (_explain(problem, ModelPart) for problem in error.errors())
            raise ValueError("; ".join(f"model: {problem}" for problem in problems)) from None
        given = {name: getattr(record, name) for name in record.model_fields_set - {"path"}}
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            if data.get(name) not in (None, value):
                raise ValueError(f"model.{name}: is given twice, as {value} and as {data[name]}; leave one out")
        return {**data, **given, "model": record.path}

    @field_validator("backbone", mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @field_validator("arrivals", mode="before")
    @classmethod
    def _bare_list(cls, value: Any) -> Any:
        return {"order": value} if isinstance(value, list) else value

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

    @model_validator(mode="after")
    def _mixed(self) -> Recipe:
        try:
            check_mix(self.mix, list(self.tasks))
        except ValueError as error:
            raise ValueError(f"mix: {error} (got {self.mix!r})") from error
        return self

    @model_validator(mode="after")
    def _known_arrivals(self) -> Recipe:
        order = self.arrivals.order if self.arrivals else []
        for task in order:
            if task not in self.tasks:
                raise ValueError(f"arrivals: {task!r} is none of the tasks ({', '.join(self.tasks)})")
        if len(set(order)) < len(order):
            raise ValueError("arrivals: a task is listed twice")
        kept = set(self.tasks) - set(order)
        if self.protect.by in ("fisher", "magnitude_gradient") and self.arrivals and not kept:
            raise ValueError(f"protect.by: {self.protect.by} needs kept rows, and every task is one that arrives")
        if self.protect.ewc and self.arrivals:
            self._ewc_fits(self.arrivals, kept)
        if self.region.entry.needs is Needs.ALL_UPDATES and (self.arrivals or len(self.tasks) < 2):
            raise ValueError(
                f"region.by: {self.region.by} compares the probes of several tasks; "
                + ("arrivals have none, choose another" if self.arrivals else "give two tasks, or choose another")
            )
        if self.region.entry.needs is Needs.ROWS and self.probe.adapter is not None:
            raise ValueError(
                f"region.by: {self.region.by} takes gradients of all parameters of a probe; leave probe.adapter out"
            )
        if self.arrivals and self.stages_by_adapter:
            raise ValueError(f"{self.stages_by_adapter[0]}.adapter: arrivals train all parameters; leave it out")
        if self.protect.every is not None and self.arrivals:
            if self.protect.average == 1:
                raise ValueError("protect.every: averages nothing with protect.average 1; give a weight below 1")
            if self.arrivals.train == "inside":
                raise ValueError("protect.every: with arrivals.train inside nothing is averaged; leave it out")
            if self.arrivals.adapter is not None:
                raise ValueError(
                    "protect.every: is not combined with arrivals.adapter, which leaves the weights as they are"
                )
        if self.arrivals and self.arrivals.osf is not None:
            self._osf_fits(self.arrivals)
        if self.fuse.every is not None and self.refine.adapter is not None:
            raise ValueError("fuse.every: is not combined with refine.adapter, which leaves the weights as they are")
        if self.base is not None and not self.arrivals:
            raise ValueError("base: is for arrivals; without them the base is model")
        return self

    def _ewc_fits(self, arrivals: Arrivals, kept: set[str]) -> None:
        if not kept:
            raise ValueError(
                "protect.ewc: what matters is measured on kept rows, and every task is one that arrives; give some by --keep, "
                "or use protect.anchor, which needs none"
            )
        for key in ("adapter", "osf"):
            if getattr(arrivals, key) is not None:
                raise ValueError(f"protect.ewc: is not combined with arrivals.{key}; leave one of them out")

    def _osf_fits(self, arrivals: Arrivals) -> None:
        conflicts = {
            "protect.freeze": self.protect.freeze,  # every entry of a matrix changes
            "protect.every": self.protect.every is not None,
            "arrivals.train": arrivals.train == "inside",
            "arrivals.adapter": arrivals.adapter is not None,
        }
        for key, given in conflicts.items():
            if given:
                raise ValueError(f"arrivals.osf: is not combined with {key}; {_OSF_REMEDIES.get(key, 'leave it out')}")

    @model_validator(mode="after")
    def _known_model_keys(self) -> Recipe:
        parts = {"backbone": self.backbone, "refine": self.refine, "arrivals": self.arrivals}
        merged = [name for name, part in parts.items() if part is not None and part.adapter is not None]
        check_model_keys(self.dtype, self.quantization, self.output, self.probe.adapter, merged)
        return self

    @model_validator(mode="after")
    def _guarded(self) -> Recipe:
        check_guard(self.guard, list(self.tasks))
        return self

    @model_validator(mode="after")
    def _one_end_token(self) -> Recipe:
        for stage in ("probe", "backbone", "refine"):
            training = getattr(self, stage).training
            if "eos_token" in training and training["eos_token"] != self.training.get("eos_token"):
                raise ValueError(f"{stage}.training.eos_token: give it in training, for all stages and scores")
        return self

    @property
    def additions(self) -> Arrivals:
        """``arrivals``, of a recipe that has them."""
        assert self.arrivals is not None
        return self.arrivals

    @property
    def chat(self) -> ChatSettings:
        """What the recipe sets of the tokenizer. Raises :class:`CpiftError` where the template cannot be read."""
        template, end = self.chat_template, self.training.get("eos_token")
        if template is not None and os.path.isfile(template):
            try:
                template = Path(template).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise CpiftError(f"chat_template: {self.chat_template} cannot be read ({error})") from error
        elif template is not None and "{%" not in template and "{{" not in template:
            raise CpiftError(f"chat_template: {template} is neither a file nor the text of a template")
        return ChatSettings(template, self.chat_template_kwargs, end if isinstance(end, str) else None)

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
        return cls.from_data(data, path.parent, overrides, str(path))

    @classmethod
    def from_data(
        cls, data: Mapping[str, Any], folder: Path, overrides: Mapping[str, Any] | None = None, source: str = "recipe"
    ) -> Recipe:
        """Check a table of keys. Relative paths in it count from ``folder``. ``overrides`` have dotted keys.

        Raises :class:`CpiftError` that names every problem.
        """
        data = dict(data)
        for key, value in (overrides or {}).items():
            set_key(data, key, value)
        return cls.parse(data, source)._resolved(folder)

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
            if isinstance(value, list):
                return [source.model_copy(update={"path": place(source.path)}) for source in value]
            found = folder / value if isinstance(value, str) else None
            return (
                str(found.absolute())
                if found is not None and (os.path.exists(found) or _is_file_name(value))
                else value
            )

        tasks = {
            n: t.placed(folder).model_copy(update={"train": place(t.train), "eval": place(t.eval)})
            for n, t in self.tasks.items()
        }
        backbone = self.backbone
        if backbone.entry is None:
            backbone = backbone.model_copy(update={"source": place(backbone.source)})
        changes = {"model": place(self.model), "base": place(self.base), "tasks": tasks, "backbone": backbone}
        changes["lm_eval_tasks"] = place(self.lm_eval_tasks)
        changes["guard"] = [entry.model_copy(update={"eval": place(entry.eval)}) for entry in self.guard]
        return self.model_copy(update={**changes, "chat_template": place(self.chat_template)})

    def changed(self, overrides: Mapping[str, Any]) -> Recipe:
        """This recipe with some keys, dotted, set to other values. Raises :class:`CpiftError` as :meth:`load` does."""
        data = self.model_dump(by_alias=True)
        for key, value in overrides.items():
            set_key(data, key, value)
        return self.parse(data)

    def dump(self) -> str:
        """As YAML, every default written out."""
        return yaml.safe_dump(self.model_dump(by_alias=True), sort_keys=False, allow_unicode=True)

    @property
    def stages_by_adapter(self) -> list[str]:
        """Kinds of stages that train an adapter in place of all parameters."""
        parts = {"probe": self.probe.adapter, "backbone": self.backbone.adapter, "refine": self.refine.adapter}
        return [stage for stage, adapter in parts.items() if adapter is not None]

    def training_of(self, stage: Literal["probe", "backbone", "refine", "arrivals"]) -> dict[str, Any]:
        """The common training settings with the stage's own on top."""
        part = getattr(self, stage)
        return {**self.training, **(part.training if part else {})}


def check_part(part: type[Checked], data: Mapping[str, object]) -> Checked:
    """Options given elsewhere than in a recipe, checked by one of its parts.

    Args:
        part: the part that has these keys, such as :class:`cpift.recipe.stages.Fuse`.
        data: values by key.

    Raises:
        CpiftError: an unknown key, or a value that is not allowed.
    """
    try:
        return part.model_validate(data)
    except ValidationError as error:
        raise CpiftError("; ".join(_explain(problem) for problem in error.errors())) from None


def _is_file_name(value: str) -> bool:
    ends = (".gguf", ".jinja")
    return is_file_name(value.partition("#")[0]) or value.endswith(ends) or value.startswith(("./", "../"))


def _explain(problem: Any, root: type[BaseModel] = Recipe) -> str:
    where = ".".join(
        str(part) for part in problem["loc"] if not str(part).startswith(("literal[", "list[", "constrained"))
    )
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        return f"unknown key {where!r}{did_you_mean(key, _known(problem['loc'][:-1], root), cutoff=0.5)}"
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


def _known(location: tuple[Any, ...], root: type[BaseModel] = Recipe) -> list[str]:
    model: Any = root
    for part in location:
        if model is Recipe and part == "tasks":
            if "list[sets]" in location:
                return list(Source.model_fields)
            return [f.alias or n for n, f in Task.model_fields.items()]
        kind = model.model_fields[part].annotation
        kinds = [one for one in (kind, *get_args(kind)) if hasattr(one, "model_fields")]
        if not kinds:
            return []
        model = kinds[0]
    return [field.alias or name for name, field in model.model_fields.items()]
