"""Where a task's score dropped on its way through the models, why, and whether it recovered."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from cpift.files import layout
from cpift.report import wording
from cpift.report.facts import RunFacts
from cpift.report.verdicts import gap, path


@dataclass(frozen=True)
class Drop:
    """The largest drop of a task's score that is beyond noise.

    Attributes:
        task: the task.
        text: the drop as a sentence.
        recovered: the last model is no longer behind.
        outcome: the same for people: won back, partly won back or still lost.
        share: the drop as a share of the score before it; negative.
    """

    task: str
    text: str
    recovered: bool
    outcome: str
    share: float


def drops(run: RunFacts) -> list[Drop]:
    """At most one a task. Those that did not recover come first, the largest first."""
    found = [drop for task in run.tasks if (drop := _largest_drop(run, task))]
    return sorted(found, key=lambda drop: (drop.recovered, drop.share))


def transitions(run: RunFacts) -> int:
    """Number of steps from one model to the next that were tested, over all tasks: some drop by chance."""
    return sum(max(0, len(_models_of(run, task)) - 1) for task in run.tasks)


def _models_of(run: RunFacts, task: str) -> list[str]:
    """Models that can have lost what an earlier one knew: not the base, nor a backbone that came from elsewhere."""
    trained = run.recipe.backbone.trained
    return [m for m in path(run, task)[1:] if trained or m != layout.BACKBONE_MODEL]


def _largest_drop(run: RunFacts, task: str) -> Drop | None:
    models = _models_of(run, task)
    changes = [(b, a, gap(run.models[a][task], run.models[b][task])) for b, a in pairwise(models)]
    down = [(change.value, before, after) for before, after, change in changes if change and change.way == "down"]
    if not down:
        return None
    value, before, after = min(down)
    last, unit = models[-1], run.metric(task).unit
    shown = {m: wording.score(run.models[m][task]["score"], unit) for m in (before, after, last)}
    since = gap(run.models[last][task], run.models[before][task])
    recovered = since is not None and since.way != "down"
    regained = gap(run.models[last][task], run.models[after][task])
    partly = "partly won back" if regained is not None and regained.way == "up" else "still lost"
    now = f" → {shown[last]} now" if after != last else ""
    text = f"{task}: {shown[before]} in {_called(before)} → {shown[after]} in {_called(after)} ({_why(run, task, after)}){now}"
    share = value / abs(run.models[before][task]["score"] or 1.0)
    return Drop(task, text, recovered, "won back" if recovered else partly, share)


def _called(model: str) -> str:
    """A model's name within a sentence."""
    if model.startswith("probe/"):
        return "its specialist"
    names = {layout.BACKBONE_MODEL: "the backbone", layout.FUSED_MODEL: "the fused model"}
    return names.get(model, wording.model(model))


def _why(run: RunFacts, task: str, model: str) -> str:
    """What happened in the step that made the model."""
    if model == layout.BACKBONE_MODEL:
        if run.recipe.backbone.mixes:
            return "which trained all tasks at once"
        later = [t for group in run.order[_stage_of(run, task) + 1 :] for t in group]
        return f"which trained {wording.names(later, 3)} after it" if later else "though it was trained last"
    if model == layout.FUSED_MODEL:
        lost = _lost_core(run, task)
        core = f"{wording.percent(lost)} of its core went to other tasks, " if lost is not None else ""
        return f"{core}outside the core the weights are a mean"
    number = int(model.partition("/")[2])
    stage = run.stages.get(layout.refine(number))
    trained = stage.settings.get("tasks") if stage else None
    tasks = [str(name) for name in trained] if isinstance(trained, list) else []
    frozen = "frozen" if _stage_of(run, task) < number - 1 and run.recipe.refine.freeze else "not yet frozen"
    return f"which trained {wording.names(tasks, 3)}, its core {frozen}"


def _stage_of(run: RunFacts, task: str) -> int:
    return next((k for k, group in enumerate(run.order) if task in group), len(run.order))


def _lost_core(run: RunFacts, task: str) -> float | None:
    """Share of a task's core positions at which another task's value stands."""
    region = run.stages.get(layout.region(task))
    if not run.fusion or region is None or not region.facts.get("count") or task not in run.fusion["won"]:
        return None
    return max(0.0, 1 - int(run.fusion["won"][task]) / region.facts["count"])
