"""Where a task was lost on its way through the models, why, and whether it came back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from cpift.report import words
from cpift.report.facts import RunFacts
from cpift.report.verdicts import gap, path


@dataclass(frozen=True)
class Fall:
    """The largest fall of a task that is beyond noise, in words; ``kept``: the last model is no longer behind."""

    task: str
    text: str
    kept: bool


def falls(run: RunFacts) -> list[Fall]:
    """At most one a task; those that did not come back first."""
    found = [fall for task in run.tasks if (fall := _fall(run, task))]
    return sorted(found, key=lambda fall: fall.kept)


def steps_looked_at(run: RunFacts) -> int:
    """How many steps of a task from one model to the next there are: some fall by chance."""
    return sum(max(0, len(path(run, task)) - 2) for task in run.tasks)


def _fall(run: RunFacts, task: str) -> Fall | None:
    steps = path(run, task)[1:]  # the base has learnt nothing to lose
    found = []
    for before, after in pairwise(steps):
        change = gap(run.models[after][task], run.models[before][task])
        if change and change.way == "down":
            found.append((change.value, before, after))
    if not found:
        return None
    _, before, after = min(found)
    last, metric = steps[-1], run.metric(task)
    at = {m: words.score(run.models[m][task]["score"], metric) for m in (before, after, last)}
    since = gap(run.models[last][task], run.models[before][task])
    kept = since is not None and since.way != "down"
    if before.startswith("probe/"):
        text = (
            f"{task}: {at[before]} in its specialist, {at[after]} in the {words.model(after)}; {_why(run, task, after)}"
        )
    else:
        text = f"{task} fell from {at[before]} ({words.model(before)}) to {at[after]} ({words.model(after)}); {_why(run, task, after)}"
    if after != last:
        end = "no longer behind beyond noise" if kept else "still behind"
        text += f". The last model has {at[last]}, {end}"
    return Fall(task, text + ".", kept)


def _why(run: RunFacts, task: str, after: str) -> str:
    if after == "backbone":
        if run.recipe["backbone"]["from"] == "multi_stage":
            later = [t for group in run.order[_stage_of(run, task) + 1 :] for t in group]
            return (
                f"the backbone trained {words.names(later)} after it"
                if later
                else "the backbone trains all tasks in turn, for as long as one specialist"
            )
        return "the backbone was trained on all tasks, or on none"
    if after == "fused":
        lost = _lost_core(run, task)
        core = (
            f"{words.percent(lost)} of its core positions went to other tasks, the rest of the weights is a mean"
            if lost is not None
            else "the weights outside the core are a mean"
        )
        return f"in fusing, {core}"
    k = int(after.partition("/")[2])
    seen = run.stages.get(f"06-refine/{k}")
    tasks = seen.settings.get("tasks", []) if seen else []
    frozen = "frozen" if _stage_of(run, task) < k - 1 and run.recipe["refine"]["freeze"] else "not yet frozen"
    return f"refine stage {k} trained on {words.names(tasks)}, its core positions {frozen}"


def _stage_of(run: RunFacts, task: str) -> int:
    return next((k for k, group in enumerate(run.order) if task in group), len(run.order))


def _lost_core(run: RunFacts, task: str) -> float | None:
    region = run.stages.get(f"02-identify/{task}")
    if not run.fusion or region is None or not region.facts.get("count") or task not in run.fusion["won"]:
        return None
    return max(0.0, 1 - float(run.fusion["won"][task]) / float(region.facts["count"]))
