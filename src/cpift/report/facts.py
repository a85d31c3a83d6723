"""What a run folder holds, as plain values, whether the run is finished, running, stopped or failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cpift.files import layout, manifest
from cpift.files.findings import Finding, distinct, read_findings
from cpift.files.layout import Kind, RunLayout, kind_of, parse
from cpift.files.lock import in_use
from cpift.files.records import Facts, PlanRecord
from cpift.method.group import Grouping
from cpift.metrics import WITH_ANSWERS, described
from cpift.metrics.comparison import RecipeValues
from cpift.metrics.guard import GuardEntry
from cpift.metrics.metric import Metric
from cpift.metrics.score import ScoreEntry, Scores
from cpift.recipe.recipe import Recipe
from cpift.report.files import Event, json_lines, maybe_json

_PLAN = ("stages", "memory", "disk")
_GROUPS = ("tasks", "jaccard", "sign_agreement", "groups", "order", "threshold")
_FUSION = ("options", "models", "total", "core", "core_share", "contested", "won", "tensors")
FINISHED, RUNNING, FAILED, STOPPED = "finished", "running", "failed", "stopped"


@dataclass
class StageFacts:
    """One finished stage, by its ``stage.json``.

    Attributes:
        name: of the stage.
        settings: what it was made with.
        facts: what it says of itself.
        digest: hash of its files.
        disk: bytes of its files; None where some are gone.
        needs: digests of the stages that it was made from, by name.
    """

    name: str
    settings: Mapping[str, object]
    facts: Facts
    digest: str
    disk: int | None
    needs: dict[str, str]


@dataclass
class RunFacts:
    """A run, by the files of its folder.

    Attributes:
        name: of the folder.
        recipe: the run's recipe.
        values: the same as plain values.
        defaults: values of a recipe with these tasks that sets nothing else.
        origins: dotted key of the recipe to ``recipe`` or ``command line``; a key in neither has its default.
        state: finished, running, stopped or failed.
        now: stages under way.
        error: one line, of a run that failed.
        error_stage: the stage that failed.
        stages: finished ones, by name.
        models: model to task to score, in the order of the method.
        guard: scores on the guard set and drift, by model.
        groups: of the tasks; None before they are known.
        fusion: what ``fusion.json`` holds.
        plan: what ``plan.json`` holds.
        warnings: in the order of the stages.
        seconds: that all stages took together.
    """

    name: str
    recipe: Recipe
    values: RecipeValues
    defaults: Mapping[str, object]
    origins: dict[str, str] | None
    state: str
    now: list[str]
    error: str
    error_stage: str
    stages: dict[str, StageFacts]
    models: dict[str, Scores]
    guard: dict[str, GuardEntry]
    groups: Grouping | None
    fusion: Mapping[str, Any] | None
    plan: PlanRecord | None
    findings: list[Finding] = field(default_factory=list)
    seconds: float | None = None

    @property
    def tasks(self) -> list[str]:
        """Names in the order of the recipe."""
        return list(self.recipe.tasks)

    @property
    def order(self) -> list[list[str]]:
        """Groups of tasks, first stage first; empty before they are known."""
        return self.groups.stages if self.groups else []

    @property
    def final(self) -> str | None:
        """The model that the run is for, once it is scored on all tasks."""
        last = layout.refine_model(len(self.order))
        return last if set(self.models.get(last, {})) >= set(self.tasks) else None

    def kind(self, kind: Kind) -> dict[str, StageFacts]:
        """Finished stages of a kind by task or number, in the order of their numbers or of the tasks."""
        stages = {n.split("/", 1)[-1]: s for n, s in self.stages.items() if kind_of(n) is kind}
        order = {task: i for i, task in enumerate(self.tasks)}
        return dict(sorted(stages.items(), key=lambda p: (order.get(p[0], int(p[0]) if p[0].isdigit() else 0), p[0])))

    def metric(self, task: str) -> Metric:
        """What scores a task, by the first model that has a score."""
        for row in self.models.values():
            if task in row:
                return described(str(row[task]["metric"]))
        return WITH_ANSWERS


def read_run(folder: Path) -> RunFacts:
    """All that the report shows of a run.

    Raises:
        CpiftError: a file is damaged.
    """
    files = RunLayout(folder)
    recipe = Recipe.load(files.recipe)
    values = cast(RecipeValues, recipe.model_dump(by_alias=True, mode="json"))
    groups = _groups(files)
    in_folder = (_stage(name, files.stage(name)) for name in files.finished())
    stages = _of_this_run({s.name: s for s in in_folder if s}, recipe, len(groups.groups) if groups else None)
    log = json_lines(files.log)
    state, error = _state(folder, log)
    run = RunFacts(
        name=folder.resolve().name,
        recipe=recipe,
        values=values,
        defaults=defaults_of(values),
        origins=_origins(log),
        state=state,
        now=files.under_way() if state in (RUNNING, STOPPED, FAILED) else [],
        error=str(error.get("error", "")),
        error_stage=str(error.get("stage", "")),
        stages=stages,
        models={},
        guard={},
        groups=groups,
        fusion=maybe_json(files.fusion, _FUSION),
        plan=cast("PlanRecord | None", maybe_json(files.plan, _PLAN)),
        seconds=sum(s.facts.get("seconds", 0.0) for s in stages.values()),
    )
    run.models = _models(files, run)
    run.guard = _guard(files, run)
    scores = maybe_json(files.scores) or {}
    run.findings = distinct(
        [
            *(read_findings(scores) if state == FINISHED else []),
            *(found for stage in stages.values() for found in read_findings(stage.facts, stage.name)),
        ]
    )
    return run


def defaults_of(values: RecipeValues) -> Mapping[str, object]:
    """All values of a recipe with these tasks that sets nothing else."""
    needed = ("generate", "train", "eval", "metric")
    tasks = list(values["tasks"].items())  # whatever their names: a page is made of any file
    bare = {
        f"task{i}": {k: v for k, v in task.items() if k in (needed if task.get("eval") is None else needed[:3])}
        for i, (_, task) in enumerate(tasks)
    }
    dumped = Recipe.parse({"model": values["model"], "tasks": bare}).model_dump(by_alias=True, mode="json")
    return {**dumped, "tasks": {name: dumped["tasks"][f"task{i}"] for i, (name, _) in enumerate(tasks)}}


def _groups(files: RunLayout) -> Grouping | None:
    values = maybe_json(files.groups, _GROUPS)
    return None if values is None else Grouping(**{key: values[key] for key in _GROUPS})


def _stage(name: str, folder: Path) -> StageFacts | None:
    made = manifest.read(folder)
    if made is None:
        return None
    files = [folder / name for name in made.outputs]
    disk = sum(f.stat().st_size for f in files) if all(f.is_file() for f in files) else None
    facts = made.facts
    return StageFacts(name, made.settings, facts, made.digest, facts.get("disk", disk), made.needs)


def _of_this_run(stages: Mapping[str, StageFacts], recipe: Recipe, groups: int | None) -> dict[str, StageFacts]:
    """Without what an earlier recipe left in the folder: other tasks, more groups, stages made from outdated ones."""
    source, known = recipe.backbone, dict[str, bool]()

    def wanted(name: str) -> bool:
        parts = parse(name)
        if parts is None:
            return True
        if parts.kind in (Kind.ROWS, Kind.PROBE, Kind.REGION) and parts.task not in recipe.tasks:
            return False
        if parts.kind is Kind.BACKBONE and not source.trained:
            return False
        if groups is not None and parts.number > groups:
            return False
        return not (source.is_base and parts.model == layout.BACKBONE_MODEL)

    def fresh(name: str) -> bool:
        if name not in known:
            known[name] = True  # no stage needs itself
            needs = stages[name].needs.items()
            known[name] = all(n not in stages or (digest == stages[n].digest and fresh(n)) for n, digest in needs)
        return known[name]

    return {name: stage for name, stage in stages.items() if wanted(name) and fresh(name)}


def _state(folder: Path, log: Sequence[Event]) -> tuple[str, Event]:
    """The state of a run, and the event of its failure."""
    last: Event = log[-1] if log else {}
    if last.get("event") == "run":  # the page is made at the end of a run, which still holds its folder
        return FINISHED, {}
    if last.get("event") == "error":
        return FAILED, last
    return (RUNNING if in_use(folder) else STOPPED), {}


def _origins(log: Sequence[Event]) -> dict[str, str] | None:
    """The origins that the last start has written, if any has."""
    starts = [event.get("origins") for event in log if event.get("event") == "start"]
    origins = next((found for found in reversed(starts) if isinstance(found, dict)), None)
    return None if origins is None else {str(key): str(origin) for key, origin in origins.items()}


def _models(files: RunLayout, run: RunFacts) -> dict[str, Scores]:
    names = [layout.BASE_MODEL, *map(layout.probe_model, run.tasks), layout.BACKBONE_MODEL, layout.FUSED_MODEL]
    names += [layout.refine_model(k) for k in range(1, len(run.order) + 1)]
    models: dict[str, Scores] = {}
    for model in names:
        for task in run.tasks:
            if layout.score(model, task) in run.stages:
                score = maybe_json(files.score(model, task), ("metric", "score", "items"))
                if score is not None:
                    models.setdefault(model, {})[task] = cast(ScoreEntry, score)
    return models


def _guard(files: RunLayout, run: RunFacts) -> dict[str, GuardEntry]:
    found: dict[str, GuardEntry] = {}
    for model in run.models:
        if layout.guard(model) in run.stages:
            entry = maybe_json(files.guard(model), ("scores",))
            if entry is not None:
                found[model] = cast(GuardEntry, entry)
    return found
