"""What happened to each task: against the base, its specialist and the backbone, and where it was lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpift import intervals
from cpift.report import words
from cpift.report.facts import RunFacts

BASELINE = "backbone"  # ordinary SFT on the same tasks, unless the recipe gives another


@dataclass(frozen=True)
class Gap:
    """This model minus another, more is better (the sign of a loss is turned), with a 95 % interval paired by row."""

    value: float
    low: float
    high: float

    @property
    def way(self) -> str:
        """up, down, or same where the interval holds zero."""
        return "up" if self.low > 0 else "down" if self.high < 0 else "same"


@dataclass(frozen=True)
class Verdict:
    """One task: gaps to ``base``, ``specialist`` and ``backbone``; absent where that model has no score."""

    task: str
    metric: str
    gaps: dict[str, Gap]


def gap(mine: dict[str, Any], other: dict[str, Any]) -> Gap | None:
    found = intervals.of_difference(mine, other)
    if found is None:
        return None
    value, low, high = found
    return Gap(-value, -high, -low) if mine["metric"] == "loss" else Gap(value, low, high)


def verdicts(run: RunFacts) -> list[Verdict]:
    """Of the final model; empty before it is scored."""
    if run.final is None:
        return []
    found = []
    for task in run.tasks:
        mine = run.models[run.final][task]
        others = {"base": "base", "specialist": f"probe/{task}", BASELINE: BASELINE}
        rows = {name: run.models.get(model, {}).get(task) for name, model in others.items()}
        gaps = {name: g for name, row in rows.items() if row and (g := gap(mine, row))}
        found.append(Verdict(task, str(mine["metric"]), gaps))
    return found


def mean_gap(gaps: Sequence[Gap]) -> Gap | None:
    """Mean over tasks, whose rows are independent of each other."""
    if not gaps:
        return None
    n = len(gaps)
    value = sum(g.value for g in gaps) / n
    down = math.sqrt(sum((g.value - g.low) ** 2 for g in gaps)) / n
    up = math.sqrt(sum((g.high - g.value) ** 2 for g in gaps)) / n
    return Gap(value, value - down, value + up)


def headline(run: RunFacts) -> str:
    """One sentence: who gained, who lost."""
    found = verdicts(run)
    if not found:
        return _unfinished(run)
    return f"{_against(found, 'base', 'Against the base', 'gained')}; {_against(found, 'specialist', 'against its own specialist', 'got better')}{_baseline(found, str(run.recipe['backbone']['from']))}."


def _against(found: Sequence[Verdict], other: str, where: str, gained: str) -> str:
    ways: dict[str, list[Verdict]] = {"up": [], "down": [], "same": []}
    for verdict in found:
        if other in verdict.gaps:
            ways[verdict.gaps[other].way].append(verdict)
    known = sum(map(len, ways.values()))
    if not known:
        return f"{where}: nothing is known yet"
    if len(ways["same"]) == known:
        return f"{where}: no task shows a difference beyond noise"
    said = [_counted(ways[way], known, other, word) for way, word in (("down", "lost"), ("up", gained)) if ways[way]]
    if ways["same"]:
        rest = [v.task for v in ways["same"]]
        who = words.names(rest) if len(rest) < 3 else f"{len(rest)} tasks"
        said.append(f"{who} show{'s' * (len(rest) == 1)} no difference beyond noise")
    return f"{where}: {', '.join(said)}"


def _counted(some: Sequence[Verdict], known: int, other: str, word: str) -> str:
    """Up to three tasks by name; of more the number, the mean, and the one that moved most."""
    if (len(some) < 4 and len(some) < known) or known == 1:
        return f"{_named(some, other)} {word}"
    who = (
        "both tasks"
        if len(some) == known == 2
        else f"all {known} tasks"
        if len(some) == known
        else f"{len(some)} of {known} tasks"
    )
    mean = mean_gap([v.gaps[other] for v in some if v.metric != "loss"])
    told = [f"mean {words.gap(mean.value, '')}"] if mean else []
    if len(some) < known:
        most = max(some, key=lambda v: abs(v.gaps[other].value) if v.metric != "loss" else 0.0)
        told.append(f"most: {_named([most], other)}")
    return f"{who} {word}" + (f" ({'; '.join(told)})" if told else "")


def _named(found: Sequence[Verdict], other: str) -> str:
    return words.names([f"{v.task} ({words.gap(v.gaps[other].value, v.metric)})" for v in found])


def _baseline(found: Sequence[Verdict], source: str) -> str:
    if source == "pretrained":  # the backbone is the base, of which the sentence has spoken
        return ""
    trained = source in ("multi_stage", "multi_task")
    who = "the backbone (plain SFT on the same tasks)" if trained else "the backbone (the checkpoint that was given)"
    right = [v.gaps[BASELINE] for v in found if v.metric != "loss" and BASELINE in v.gaps]
    mean = mean_gap(right)
    if mean is None:
        return ""
    told = words.interval(mean.low, mean.high, "exact_match")
    if mean.way == "same":
        return f"; against {who}: no difference beyond noise ({words.gap(mean.value, '')}, 95 % {told})"
    return f"; against {who}: {words.gap(mean.value, '')} on average (95 % {told})"


def _unfinished(run: RunFacts) -> str:
    done, tasks = len(run.stages), f"{len(run.tasks)} task{'s' if len(run.tasks) != 1 else ''}"
    if run.state == "failed":
        where = f" in {run.error_stage}" if run.error_stage else ""
        return f"The run failed{where}: {run.error or 'no reason was written'}"
    if run.state == "running":
        now = f"; under way: {words.names(run.now)}" if run.now else ""
        return f"The run is going on with {tasks}: {done} stages are done{now}."
    if run.state == "finished":
        return "The run is finished, but its last model has no scores."
    now = f"; it was at {words.names(run.now)}" if run.now else ""
    return f"The run stopped before its end with {tasks}: {done} stages are done{now}. The same command goes on from there."


def path(run: RunFacts, task: str) -> list[str]:
    """The models that a task went through: base, its own probe, backbone, fused, refine 1 … K."""
    order = ["base", f"probe/{task}", "backbone", "fused", *(f"refine/{k}" for k in range(1, len(run.order) + 1))]
    return [model for model in order if task in run.models.get(model, {})]
