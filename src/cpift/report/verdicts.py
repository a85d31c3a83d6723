"""What happened to each task: against the base, its specialist and the backbone, and where it was lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cpift.files import layout
from cpift.metrics import described, intervals, mean_unit
from cpift.metrics.metric import PER_CENT, Metric, Unit
from cpift.metrics.score import ScoreEntry
from cpift.recipe.stages import Backbone
from cpift.report import wording
from cpift.report.facts import FINISHED, STOPPED, RunFacts
from cpift.report.parts import Clause

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
    metric: Metric
    gaps: dict[str, Gap]


def gap(score: ScoreEntry, other: ScoreEntry) -> Gap | None:
    """How much better the first score is; None where their rows cannot be paired."""
    difference = intervals.of_difference(score, other)
    if difference is None:
        return None
    value, low, high = difference
    return Gap(value, low, high) if described(score["metric"]).higher_is_better else Gap(-value, -high, -low)


def verdicts(run: RunFacts) -> list[Verdict]:
    """Of the final model; empty before it is scored."""
    if run.final is None:
        return []
    verdicts = []
    for task in run.tasks:
        final = run.models[run.final][task]
        others = {"base": "base", "specialist": layout.probe_model(task), BASELINE: BASELINE}
        rows = {name: run.models.get(model, {}).get(task) for name, model in others.items()}
        gaps = {name: g for name, row in rows.items() if row and (g := gap(final, row))}
        verdicts.append(Verdict(task, described(final["metric"]), gaps))
    return verdicts


def mean_gap(gaps: Sequence[Gap]) -> Gap | None:
    """Mean over tasks, whose rows are independent of each other."""
    if not gaps:
        return None
    n = len(gaps)
    value = sum(g.value for g in gaps) / n
    down = math.sqrt(sum((g.value - g.low) ** 2 for g in gaps)) / n
    up = math.sqrt(sum((g.high - g.value) ** 2 for g in gaps)) / n
    return Gap(value, value - down, value + up)


def judged(run: RunFacts) -> list[Verdict]:
    """The verdicts that the page may tell: of a run under way or failed, scores may be left of an earlier recipe."""
    return verdicts(run) if run.state in (FINISHED, STOPPED) else []


def headline(run: RunFacts) -> list[Clause]:
    """One sentence: who gained, who lost."""
    found = judged(run)
    if not found:
        return [("", _unfinished(run))]
    clauses = [
        _against(found, "base", "Against the base", "gained"),
        _against(found, "specialist", "against specialists, one trained for each task alone", "did better"),
        _baseline(found, run.recipe.backbone),
    ]
    return [(where, what) for where, what in clauses if what]


def _against(found: Sequence[Verdict], other: str, where: str, gained: str) -> Clause:
    ways: dict[str, list[Verdict]] = {"up": [], "down": [], "same": []}
    for verdict in found:
        if other in verdict.gaps:
            ways[verdict.gaps[other].way].append(verdict)
    known = sum(map(len, ways.values()))
    if not known:
        return where, "nothing is known yet"
    if len(ways["same"]) == known:
        return where, f"no difference beyond noise on any task ({_mean(ways['same'], other)})"
    said = [_counted(ways[way], known, other, word) for way, word in (("down", "lost"), ("up", gained)) if ways[way]]
    if ways["same"]:
        rest = [v.task for v in ways["same"]]
        who = f"on {wording.names(rest)}" if len(rest) < 3 else f"on {len(rest)} tasks"
        said.append(f"no difference beyond noise {who}")
    return where, ", ".join(said)


def _counted(some: Sequence[Verdict], known: int, other: str, word: str) -> str:
    """Up to two tasks by name; of more the number, the mean, and the one that moved most."""
    if (len(some) < 3 and len(some) < known) or known == 1:
        return f"{word} on {wording.names([f'{v.task} ({_size(v.gaps[other], v.metric.unit)})' for v in some], longest=120)}"
    who = (
        "both tasks"
        if len(some) == known == 2
        else f"all {known} tasks"
        if len(some) == known
        else f"{len(some)} of {known} tasks"
    )
    most = max(some, key=lambda v: (v.metric.unit == PER_CENT, abs(v.gaps[other].value)))
    largest = f", most {most.task} {wording.gap(most.gaps[other].value, most.metric.unit)}" if len(some) < known else ""
    return f"{word} on {who} ({_mean(some, other)}{largest})"


def _mean(some: Sequence[Verdict], other: str) -> str:
    """Mean of the tasks scored in per cent; of the others where there are none."""
    pairs = [(v.gaps[other], v.metric) for v in some if other in v.gaps]
    unit = mean_unit(metric.name for _, metric in pairs)
    mean = mean_gap([g for g, metric in pairs if metric.unit == unit])
    assert mean is not None
    return f"mean {_size(mean, unit)}" if len(pairs) > 1 else _size(mean, unit)


def _size(found: Gap, unit: Unit) -> str:
    return f"{wording.gap(found.value, unit)}, 95 % {wording.interval(found.low, found.high, unit)}"


def _baseline(found: Sequence[Verdict], source: Backbone) -> Clause:
    """Against the backbone: the only baseline that a run trains itself."""
    known = [v for v in found if BASELINE in v.gaps]
    if not known or source.is_base:  # that backbone is the base, of which the sentence has spoken
        return "", ""
    trained = source.entry.summary if source.entry else "the checkpoint that was given"
    right = [v.gaps[BASELINE] for v in known if v.metric.unit == PER_CENT] or [v.gaps[BASELINE] for v in known]
    mean = mean_gap(right)
    verdict = "" if mean is None else {"up": "ahead", "down": "behind", "same": "no difference beyond noise"}[mean.way]
    return f"against the backbone, {trained}", f"{verdict} ({_mean(known, BASELINE)})"


def _unfinished(run: RunFacts) -> str:
    done, tasks = len(run.stages), f"{len(run.tasks)} task{'s' if len(run.tasks) != 1 else ''}"
    if run.state == "failed":
        stage, reason = run.error_stage, run.error or "no reason was written"
        where = reason if stage and reason.startswith(stage) else f"{stage}: {reason}"  # some name it themselves
        return f"The run failed{f' in {where}' if stage else f': {reason}'}"
    if run.state == "running":
        now = f"; under way: {wording.names(run.now)}" if run.now else ""
        return f"The run is under way with {tasks}: {done} stages are done{now}."
    if run.state == "finished":
        return "The run is finished, but its last model has no scores."
    now = f"; it was at {wording.names(run.now)}" if run.now else ""
    return f"The run stopped before its end with {tasks}: {done} stages are done{now}. The same command resumes from there."


def path(run: RunFacts, task: str) -> list[str]:
    """The models that a task went through: base, its own probe, backbone, fused, refine 1 … K."""
    order = [layout.BASE_MODEL, layout.probe_model(task), layout.BACKBONE_MODEL, layout.FUSED_MODEL]
    order += [layout.refine_model(k) for k in range(1, len(run.order) + 1)]
    return [model for model in order if task in run.models.get(model, {})]
