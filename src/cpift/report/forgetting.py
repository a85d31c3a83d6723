"""Where a task was lost on its way through the models, why, and whether it came back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from cpift.files import layout
from cpift.report import wording
from cpift.report.facts import RunFacts, backbone_of
from cpift.report.verdicts import gap, path


@dataclass(frozen=True)
class Fall:
    """The largest fall of a task that is beyond noise, in words.

    kept: the last model is no longer behind. now: the same in words.
    weight: the fall as a share of what there was; negative.
    """

    task: str
    text: str
    kept: bool
    now: str
    weight: float


def falls(run: RunFacts) -> list[Fall]:
    """At most one a task; those that did not come back first, the worst first."""
    found = [fall for task in run.tasks if (fall := _fall(run, task))]
    return sorted(found, key=lambda fall: (fall.kept, fall.weight))


def steps_looked_at(run: RunFacts) -> int:
    """How many steps of a task from one model to the next there are: some fall by chance."""
    return sum(max(0, len(_steps(run, task)) - 1) for task in run.tasks)


def _steps(run: RunFacts, task: str) -> list[str]:
    """Models that can have lost what an earlier one knew: not the base, nor a backbone that came from elsewhere."""
    trained = backbone_of(run.recipe).trained
    return [m for m in path(run, task)[1:] if trained or m != "backbone"]


def _fall(run: RunFacts, task: str) -> Fall | None:
    steps = _steps(run, task)
    found = []
    for before, after in pairwise(steps):
        change = gap(run.models[after][task], run.models[before][task])
        if change and change.way == "down":
            found.append((change.value, before, after))
    if not found:
        return None
    value, before, after = min(found)
    last, metric = steps[-1], run.metric(task)
    at = {m: wording.score(run.models[m][task]["score"], metric.unit) for m in (before, after, last)}
    since = gap(run.models[last][task], run.models[before][task])
    kept = since is not None and since.way != "down"
    regained = gap(run.models[last][task], run.models[after][task])
    partly = "partly won back" if regained is not None and regained.way == "up" else "still lost"
    told = {m: f"{at[m]} in {_place(m)}" for m in (before, after)}
    text = f"{task}: {told[before]} → {told[after]} ({_why(run, task, after)})" + (
        f" → {at[last]} now" if after != last else ""
    )
    weight = value / abs(float(run.models[before][task]["score"]) or 1.0)
    return Fall(task, text, kept, "won back" if kept else partly, weight)


def _place(model: str) -> str:
    if model.startswith("probe/"):
        return "its specialist"
    return {"backbone": "the backbone", "fused": "the fused model"}.get(model, wording.model(model))


def _why(run: RunFacts, task: str, after: str) -> str:
    if after == "backbone":
        if backbone_of(run.recipe).mixes:
            return "which trained all tasks at once"
        later = [t for group in run.order[_stage_of(run, task) + 1 :] for t in group]
        return f"which trained {wording.names(later, 3)} after it" if later else "though it was trained last"
    if after == "fused":
        lost = _lost_core(run, task)
        core = f"{wording.percent(lost)} of its core went to other tasks, " if lost is not None else ""
        return f"{core}outside the core the weights are a mean"
    k = int(after.partition("/")[2])
    seen = run.stages.get(layout.refine(k))
    tasks = seen.settings.get("tasks", []) if seen else []
    frozen = "frozen" if _stage_of(run, task) < k - 1 and run.recipe["refine"]["freeze"] else "not yet frozen"
    return f"which trained {wording.names(tasks, 3)}, its core {frozen}"


def _stage_of(run: RunFacts, task: str) -> int:
    return next((k for k, group in enumerate(run.order) if task in group), len(run.order))


def _lost_core(run: RunFacts, task: str) -> float | None:
    region = run.stages.get(layout.region(task))
    if not run.fusion or region is None or not region.facts.get("count") or task not in run.fusion["won"]:
        return None
    return max(0.0, 1 - float(run.fusion["won"][task]) / float(region.facts["count"]))
