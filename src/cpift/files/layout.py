"""The run folder: the name of every stage, the path of every file, and the way back from a name to its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

STAGE_FILE = "stage.json"
TRAIN_ROWS, EVAL_ROWS = "train.jsonl", "eval.jsonl"
REGION_FILE = "region.safetensors"
GROUPS_FILE = "groups.json"
FUSION_FILE = "fusion.json"
SCORE_FILE = "score.json"
CARRIED_REGIONS = "cpift_regions"  # beside a model's weights: what later additions must not change
GUARD_FILE = "guard.json"
LOGITS_FILE = "logits.safetensors"  # of the model before, on the neutral text
WORK_FOLDER = "work"  # within a training that is under way: the trainer's own checkpoints
_PATCH = ".patch.safetensors"  # after the name of the task


class Kind(StrEnum):
    """What a stage holds. The value is the name of its folder below ``stages/``."""

    BASE = "00-base"
    ROWS = "00-tasks"
    PROBE = "01-probe"
    REGION = "02-identify"
    GROUP = "03-group"
    BACKBONE = "04-backbone"
    FUSE = "05-fuse"
    REFINE = "06-refine"
    PROTECT = "03-protect"
    ARRIVAL = "04-arrive"
    SCORE = "07-evaluate"
    GUARD = "07-guard"


# The stages that there is one of.
BASE, GROUP, FUSE, PROTECT = Kind.BASE.value, Kind.GROUP.value, Kind.FUSE.value, Kind.PROTECT.value
ARRIVAL_PARTS = ("train", "identify", "inside", "fuse")  # of an arrival, one after the other

_OF_A_TASK = (Kind.ROWS, Kind.PROBE, Kind.REGION)
_NUMBERED = (Kind.BACKBONE, Kind.REFINE)


@dataclass(frozen=True)
class StageName:
    """A stage's name in parts.

    Attributes:
        kind: what the stage holds.
        task: of rows, probes, regions and scores; empty for the others.
        number: of backbone and refine stages and arrivals, from 1; 0 for the others.
        model: of scores and guards, as the folder spells it (:func:`model_folder`).
        part: of an arrival, one of ``ARRIVAL_PARTS``.
    """

    kind: Kind
    task: str = ""
    number: int = 0
    model: str = ""
    part: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.kind.value, self.model, self.task, str(self.number or ""), self.part)))


def parse(name: str) -> StageName | None:
    """The parts of a stage's name; None for a stage that is none of the method's own, such as a baseline's."""
    folder, _, rest = name.partition("/")
    try:
        kind = Kind(folder)
    except ValueError:
        return None
    if kind in _OF_A_TASK:
        return StageName(kind, task=rest) if rest else None
    if kind in _NUMBERED:
        return StageName(kind, number=int(rest)) if rest.isdigit() and int(rest) else None
    if kind is Kind.ARRIVAL:
        number, _, part = rest.partition("/")
        known = number.isdigit() and int(number) and part in ARRIVAL_PARTS
        return StageName(kind, number=int(number), part=part) if known else None
    if kind is Kind.SCORE:
        model, _, task = rest.partition("/")
        return StageName(kind, task=task, model=model) if model and task else None
    if kind is Kind.GUARD:
        return StageName(kind, model=rest) if rest else None
    return None if rest else StageName(kind)


def kind_of(name: str) -> Kind | None:
    """The kind of a stage; None for one that is none of the method's own."""
    parsed = parse(name)
    return parsed.kind if parsed else None


def folder_of(name: str) -> str:
    """The folder below ``stages/`` that a stage lies in: its kind, or a baseline's own name."""
    return name.partition("/")[0]


def rows(task: str) -> str:
    """The stage that holds a task's rows."""
    return str(StageName(Kind.ROWS, task=task))


def probe(task: str) -> str:
    """The stage that fine-tunes the base on one task alone."""
    return str(StageName(Kind.PROBE, task=task))


def region(task: str) -> str:
    """The stage that selects a task's core region."""
    return str(StageName(Kind.REGION, task=task))


def backbone(number: int) -> str:
    """The backbone's stage of this number, from 1."""
    return str(StageName(Kind.BACKBONE, number=number))


def refine(number: int) -> str:
    """The refine stage of this number, from 1."""
    return str(StageName(Kind.REFINE, number=number))


def arrival(number: int, part: str) -> str:
    """The stage of an arrival, from 1, that does one of ``ARRIVAL_PARTS``."""
    return str(StageName(Kind.ARRIVAL, number=number, part=part))


def score(model: str, task: str) -> str:
    """The stage that scores a model on a task."""
    return str(StageName(Kind.SCORE, task=task, model=model_folder(model)))


def guard(model: str) -> str:
    """The stage that scores a model on the guard set."""
    return str(StageName(Kind.GUARD, model=model_folder(model)))


def model_folder(model: str) -> str:
    """A model's name as one folder."""
    return model.replace("/", "-")


def probe_model(task: str) -> str:
    """What scores and report call a task's probe, its specialist."""
    return f"probe/{task}"


def refine_model(number: int) -> str:
    """What scores and report call the model that a refine stage ends with."""
    return f"refine/{number}"


def arrival_model(number: int) -> str:
    """What scores and report call the model after an arrival."""
    return f"arrival/{number}"


BEFORE_MODEL = "before"  # the one that tasks are added to
BASE_MODEL, BACKBONE_MODEL, FUSED_MODEL = "base", "backbone", "fused"


def model_of(stage: str) -> str:
    """What scores and report call the model that a stage has made.

    Raises:
        ValueError: the stage makes no model that is scored under a name of its own.
    """
    parsed = parse(stage)
    if parsed is not None:
        if parsed.kind is Kind.PROBE:
            return probe_model(parsed.task)
        if parsed.kind is Kind.REFINE:
            return refine_model(parsed.number)
        if parsed.kind in (Kind.BASE, Kind.BACKBONE, Kind.FUSE):
            return {Kind.BASE: BASE_MODEL, Kind.BACKBONE: BACKBONE_MODEL, Kind.FUSE: FUSED_MODEL}[parsed.kind]
    raise ValueError(f"{stage} makes no model of a run")


@dataclass(frozen=True)
class RunLayout:
    """Every path of the run folder ``out``. Nothing is read, but for what :meth:`finished` and :meth:`under_way` list."""

    out: Path

    @property
    def recipe(self) -> Path:
        """The recipe as resolved."""
        return self.out / "recipe.yaml"

    @property
    def scores(self) -> Path:
        """All scores, once the run is done."""
        return self.out / "scores.json"

    @property
    def scored(self) -> Path:
        """Answers and outcomes of rows, for scores of other metrics or more rows; may be removed."""
        return self.out / ".scored"

    @property
    def report(self) -> Path:
        """The page."""
        return self.out / "report.html"

    @property
    def log(self) -> Path:
        """One line an event."""
        return self.out / "log.jsonl"

    @property
    def state(self) -> Path:
        """What is settled once for the folder: the probes' steps."""
        return self.out / "state.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's files, a folder a stage that trains."""
        return self.out / "tensorboard"

    @property
    def plan(self) -> Path:
        """What ``cpift plan`` predicted."""
        return self.out / "plan.json"

    @property
    def lock(self) -> Path:
        """Held by the process that works in the folder."""
        return self.out / ".lock"

    @property
    def model(self) -> Path:
        """The final model."""
        return self.out / "model"

    @property
    def published(self) -> Path:
        """Which stage's checkpoint ``model/`` holds, and in which type."""
        return self.out / ".model.json"

    def patch(self, task: str) -> Path:
        """The patch of an addition inside its core."""
        return self.out / f"{task}{_PATCH}"

    @property
    def patches(self) -> list[Path]:
        """The patches that are there."""
        return sorted(path for path in self.out.glob("*") if path.name.endswith(_PATCH))

    @property
    def patched(self) -> Path:
        """Which stage the patch of an addition was made from, and the hash of its file."""
        return self.out / ".patch.json"

    @property
    def stages(self) -> Path:
        """All stages."""
        return self.out / "stages"

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.stages / name

    def name_of(self, folder: Path) -> str:
        """The stage of a folder: the inverse of :meth:`stage`."""
        return folder.relative_to(self.stages).as_posix()

    def job_log(self, stage: str) -> Path:
        """What a worker printed when it made the stage."""
        return self.out / "logs" / f"{model_folder(stage)}.log"

    def rows(self, task: str, part: str) -> Path:
        """``train`` or ``eval`` rows of a task."""
        return self.stage(rows(task)) / {"train": TRAIN_ROWS, "eval": EVAL_ROWS}[part]

    def region(self, task: str) -> Path:
        """A task's core region."""
        return self.stage(region(task)) / REGION_FILE

    @property
    def groups(self) -> Path:
        """Overlaps and groups of the tasks."""
        return self.stage(GROUP) / GROUPS_FILE

    @property
    def fusion(self) -> Path:
        """The fusion's report, tensor by tensor."""
        return self.stage(FUSE) / FUSION_FILE

    def score(self, model: str, task: str) -> Path:
        """A model's score on a task."""
        return self.stage(score(model, task)) / SCORE_FILE

    def guard(self, model: str) -> Path:
        """A model's scores on the guard set."""
        return self.stage(guard(model)) / GUARD_FILE

    def finished(self) -> Iterator[str]:
        """Names of the stages that are there, in order of name; those under way, or being replaced, are left out."""
        for file in sorted(self.stages.glob(f"**/{STAGE_FILE}")):
            name = self.name_of(file.parent)
            if not any(part.startswith(".") for part in name.split("/")):
                yield name

    def under_way(self) -> list[str]:
        """Names of the stages that are begun and not finished."""
        return sorted(
            self.name_of(folder.with_name(folder.name[1 : -len(".partial")]))
            for folder in self.stages.glob("**/.*.partial")
            if folder.is_dir()
        )
