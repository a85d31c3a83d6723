"""What a run folder holds, as plain values: finished, going on, stopped or failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpift.files import layout, manifest
from cpift.files.layout import Kind, RunLayout, kind_of, parse
from cpift.files.lock import in_use
from cpift.metrics import WITH_ANSWERS, described
from cpift.metrics.metric import Metric
from cpift.recipe.parts import Backbone
from cpift.recipe.recipe import Recipe
from cpift.report.files import json_lines, maybe_json

_GROUPS = ("tasks", "jaccard", "sign_agreement", "groups", "order", "threshold")
_FUSION = ("options", "models", "total", "core", "core_share", "contested", "won", "tensors")
FINISHED, RUNNING, FAILED, STOPPED = "finished", "running", "failed", "stopped"


@dataclass
class StageFacts:
    """One finished stage: its ``stage.json``, and the bytes of its files where they are still there."""

    name: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    digest: str
    disk: int | None
    needs: dict[str, str]


@dataclass
class RunFacts:
    """A run as its files tell it. ``models``: model to task to score, in the order of the method.

    state: finished, running, stopped or failed. now: the stages under way. error: the line of a failure, and its stage.
    origins: dotted key of the recipe to "recipe" or "command line"; what is in neither is a default.
    """

    name: str
    recipe: dict[str, Any]
    defaults: dict[str, Any]
    origins: dict[str, str] | None
    state: str
    now: list[str]
    error: str
    error_stage: str
    stages: dict[str, StageFacts]
    models: dict[str, dict[str, dict[str, Any]]]
    neutral: dict[str, float]
    groups: dict[str, Any] | None
    fusion: dict[str, Any] | None
    plan: dict[str, Any] | None
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None

    @property
    def tasks(self) -> list[str]:
        return list(self.recipe["tasks"])

    @property
    def order(self) -> list[list[str]]:
        """Groups of tasks, first stage first; empty before they are known."""
        return [self.groups["groups"][i] for i in self.groups["order"]] if self.groups else []

    @property
    def final(self) -> str | None:
        """The model that the run is for, once it is scored on all tasks."""
        last = layout.refine_model(len(self.order))
        return last if set(self.models.get(last, {})) >= set(self.tasks) else None

    def kind(self, kind: Kind) -> dict[str, StageFacts]:
        """Finished stages of a kind by task or number, in the order of their numbers or of the tasks."""
        found = {n.split("/", 1)[-1]: s for n, s in self.stages.items() if kind_of(n) is kind}
        order = {task: i for i, task in enumerate(self.tasks)}
        return dict(sorted(found.items(), key=lambda p: (order.get(p[0], int(p[0]) if p[0].isdigit() else 0), p[0])))

    def metric(self, task: str) -> Metric:
        """What scores a task, by the first model that has a score."""
        for row in self.models.values():
            if task in row:
                return described(str(row[task]["metric"]))
        return WITH_ANSWERS


def backbone_of(recipe: Mapping[str, Any]) -> Backbone:
    """Where a run's backbone came from, by its recipe's values."""
    return Backbone.model_validate({"from": str(recipe["backbone"]["from"])})


def read_run(folder: Path) -> RunFacts:
    """All that the report tells of a run. Raises :class:`CpiftError` for a file that is damaged."""
    place = RunLayout(folder)
    recipe = Recipe.load(place.recipe)
    values = recipe.model_dump(by_alias=True, mode="json")
    defaults = defaults_of(values)
    found = (_stage(name, place.stage(name)) for name in place.finished())
    groups = maybe_json(place.groups, _GROUPS)
    stages = _of_this_run({s.name: s for s in found if s}, values, len(groups["groups"]) if groups else None)
    log = json_lines(place.log)
    state, error = _state(folder, log)
    run = RunFacts(
        name=folder.resolve().name,
        recipe=values,
        defaults=defaults,
        origins=_origins(log),
        state=state,
        now=place.under_way() if state in (RUNNING, STOPPED, FAILED) else [],
        error=str(error.get("error", "")),
        error_stage=str(error.get("stage", "")),
        stages=stages,
        models={},
        neutral={},
        groups=groups,
        fusion=maybe_json(place.fusion, _FUSION),
        plan=maybe_json(place.plan, ("stages", "memory", "disk")),
        seconds=sum(s.facts.get("seconds", 0.0) for s in stages.values()),
    )
    run.models = _models(place, run)
    run.neutral = {
        m: s.facts["loss"] for m in run.models if (s := stages.get(layout.neutral(m))) is not None and "loss" in s.facts
    }
    told = maybe_json(place.scores) or {}
    said = [
        *(told.get("warnings", []) if state == FINISHED else []),
        *(w for s in stages.values() for w in s.facts.get("warnings", [])),
    ]
    run.warnings = list(dict.fromkeys(map(str, said)))
    return run


def defaults_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with these tasks that says no more than it must, as a table of all its values."""
    needed = ("generate", "train", "eval")
    tasks = list(values["tasks"].items())  # whatever their names: a page is made of any file
    bare = {f"task{i}": {k: v for k, v in task.items() if k in needed} for i, (_, task) in enumerate(tasks)}
    found = Recipe.parse({"model": values["model"], "tasks": bare}).model_dump(by_alias=True, mode="json")
    return {**found, "tasks": {name: found["tasks"][f"task{i}"] for i, (name, _) in enumerate(tasks)}}


def _stage(name: str, folder: Path) -> StageFacts | None:
    made = manifest.read(folder)
    if made is None:
        return None
    files = [folder / name for name in made.outputs]
    disk = sum(f.stat().st_size for f in files) if all(f.is_file() for f in files) else None
    return StageFacts(name, made.settings, made.facts, made.digest, made.facts.get("disk", disk), made.needs)


def _of_this_run(
    found: Mapping[str, StageFacts], recipe: Mapping[str, Any], groups: int | None
) -> dict[str, StageFacts]:
    """Without what an earlier recipe left in the folder: other tasks, more groups, stages made from what is no longer so."""
    source, known = backbone_of(recipe), dict[str, bool]()

    def wanted(name: str) -> bool:
        parts = parse(name)
        if parts is None:
            return True
        if parts.kind in (Kind.ROWS, Kind.PROBE, Kind.REGION) and parts.task not in recipe["tasks"]:
            return False
        if parts.kind is Kind.BACKBONE and not source.trained:
            return False
        if groups is not None and parts.number > groups:
            return False
        return not (source.is_base and parts.model == layout.BACKBONE_MODEL)

    def fresh(name: str) -> bool:
        if name not in known:
            known[name] = True  # no stage needs itself
            needs = found[name].needs.items()
            known[name] = all(n not in found or (digest == found[n].digest and fresh(n)) for n, digest in needs)
        return known[name]

    return {name: stage for name, stage in found.items() if wanted(name) and fresh(name)}


def _state(folder: Path, log: list[dict[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    last = log[-1] if log else {}
    if last.get("event") == "run":  # the page is made at the end of a run, which still holds its folder
        return FINISHED, {}
    if last.get("event") == "error":
        return FAILED, last
    return (RUNNING if in_use(folder) else STOPPED), {}


def _origins(log: list[dict[str, Any]]) -> dict[str, str] | None:
    """Of the last start that told them."""
    told = [
        event["origins"] for event in log if event.get("event") == "start" and isinstance(event.get("origins"), dict)
    ]
    return told[-1] if told else None


def _models(place: RunLayout, run: RunFacts) -> dict[str, dict[str, dict[str, Any]]]:
    names = [layout.BASE_MODEL, *map(layout.probe_model, run.tasks), layout.BACKBONE_MODEL, layout.FUSED_MODEL]
    names += [layout.refine_model(k) for k in range(1, len(run.order) + 1)]
    found = {}
    for model in names:
        row = {}
        for task in run.tasks:
            if layout.score(model, task) in run.stages:
                score = maybe_json(place.score(model, task), ("metric", "score", "items"))
                if score:
                    row[task] = score
        if row:
            found[model] = row
    return found
