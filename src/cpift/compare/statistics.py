"""What the scores of several methods and seeds say: means, spreads, paired intervals over seeds, wins and losses.

Scores are oriented so that more is better: for a task scored by loss the sign is turned. Methods are compared on the same
items and seeds, so what both find hard cancels. Seeds are the unit: see :mod:`cpift.compare.units`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import numpy as np

from cpift.compare.units import from_error, holm, over_units
from cpift.errors import CpiftError
from cpift.metrics import described
from cpift.metrics.comparison import (
    ArrivalEntry,
    Compared,
    Difference,
    Forgetting,
    GuardDifference,
    MethodDifference,
    MethodSummary,
    Result,
    Spread,
    TaskEntry,
)
from cpift.metrics.pairing import Paired, paired
from cpift.metrics.score import ScoreEntry, Scores
from cpift.metrics.summary import share_of

Pair = tuple[ScoreEntry, ScoreEntry]
Results = Mapping[str, Result]  # by seed
Tasks = Mapping[str, TaskEntry]  # by name


def summary(results: Results, tasks: Tasks, specialists: Results | None) -> MethodSummary:
    """Mean and standard deviation over seeds, of each task and of their mean; tokens and seconds; the worst task.

    Args:
        results: of one method.
        tasks: of the recipe.
        specialists: results of a model for each task, for shares and the seesaw count; None: there are none.
    """
    per_task = {task: [r["scores"][task]["score"] for r in results.values() if task in r["scores"]] for task in tasks}
    known = {task: values for task, values in per_task.items() if values}
    entry: MethodSummary = {
        "seeds": len(results),
        "tokens": fmean(r["tokens"] for r in results.values()),
        "seconds": fmean(r["seconds"] for r in results.values()),
        "tasks": {task: _spread(values) for task, values in known.items()},
        "mean": _spread([m for r in results.values() if (m := mean_score(r["scores"])) is not None]),
    }
    if specialists:
        common = [seed for seed in results if seed in specialists]
        shares = {task: _share([(results[s], specialists[s]) for s in common], task) for task in known}
        kept = {task: share for task, share in shares.items() if share is not None}
        entry["shares"] = shares
        entry["worst_task"] = min(kept, key=lambda task: kept[task]) if kept else None
        below = difference({s: results[s] for s in common}, {s: specialists[s] for s in common}, tasks)["tasks"]
        entry["seesaw"] = sum(gap["high"] < 0 for gap in below.values())
    if guard := guard_summary(results):
        entry["guard"] = guard
    models = [list(result["guard"]["models"].values())[-1] for result in results.values() if "guard" in result]
    if drifts := [model["drift"]["kl"] for model in models if "drift" in model]:
        entry["drift"] = _spread(drifts)
    return entry


def guard_summary(results: Results) -> dict[str, GuardDifference]:
    """By set of the guard: the last model minus the base, as :func:`difference` has it; empty where it was not scored.

    Args:
        results: of one method.
    """
    after, before, metrics = dict[str, Result](), dict[str, Result](), dict[str, TaskEntry]()
    for seed, result in results.items():
        if "guard" not in result:
            continue
        entries = list(result["guard"]["models"].values())  # the base, then the last model
        scores = entries[-1]["scores"]
        after[seed], before[seed] = {**result, "scores": scores}, {**result, "scores": entries[0]["scores"]}
        metrics |= {name: {"metric": score["metric"], "rows": len(score["items"])} for name, score in scores.items()}
    gaps = difference(after, before, metrics)["tasks"] if after else {}
    return {name: {**gap, "metric": metrics[name]["metric"]} for name, gap in gaps.items()}


def mean_score(scores: Scores) -> float | None:
    """Mean over the tasks whose scores are shares of the best possible one; where there is none, over all, the sign of a loss turned."""
    kinds = {task: described(score["metric"]) for task, score in scores.items()}
    right = [scores[task]["score"] for task, metric in kinds.items() if metric.unit.bounded]
    oriented = [metric.gain(scores[task]["score"], 0.0) for task, metric in kinds.items()]
    return fmean(right or oriented) if scores else None


def _spread(values: Sequence[float]) -> Spread:
    return {"mean": fmean(values) if values else None, "sd": stdev(values) if len(values) > 1 else None}


def _share(pairs: Sequence[tuple[Result, Result]], task: str) -> float | None:
    shares = [
        share_of(result["scores"][task]["metric"], result["scores"][task]["score"], special["scores"][task]["score"])
        for result, special in pairs
        if task in result["scores"] and task in special["scores"]
    ]
    known = [share for share in shares if share is not None]
    return fmean(known) if known else None


def difference(first: Results, second: Results, tasks: Tasks) -> Compared:
    """First minus second, paired by seed, with Student's 95 % intervals over seeds.

    With one seed the interval is over that seed's items, and says nothing of other seeds.
    ``mean`` is over the tasks whose scores are shares of the best possible one (all tasks, where there is none).
    """
    seeds = [seed for seed in first if seed in second]
    shared = [t for t in tasks if seeds and all(t in r[s]["scores"] for r in (first, second) for s in seeds)]
    pairs = {t: [(first[s]["scores"][t], second[s]["scores"][t]) for s in seeds] for t in shared}
    gaps = {task: _estimate([[pair] for pair in of_seeds]) for task, of_seeds in pairs.items()}
    counted = [t for t in shared if described(tasks[t]["metric"]).unit.bounded] or shared
    result: Compared = {"seeds": len(seeds), "tasks": gaps}
    if counted:
        result["mean"] = _estimate([[pairs[t][i] for t in counted] for i in range(len(seeds))])
    result["wins"] = sum(gap["low"] > 0 for gap in gaps.values())
    result["losses"] = sum(gap["high"] < 0 for gap in gaps.values())
    result["ties"] = len(gaps) - result["wins"] - result["losses"]
    return result


def forgetting(results: Results, tasks: Tasks) -> Forgetting:
    """Of tasks that arrive one after the other: what the old ones lose at an arrival, and what the new one gains.

    "old": the score of each earlier task after an arrival minus before it, mean over tasks and arrivals; "new": the same
    of the task that arrives. Intervals as in :func:`difference`. Empty where one task arrives only.
    """
    changes: dict[str, list[list[Pair]]] = {}
    for result in results.values():
        pairs: dict[str, list[Pair]] = {}
        arrivals = result["arrivals"]
        for i in range(1, len(arrivals)):
            for j in range(i + 1):
                task = arrivals[j]["task"]
                if task in tasks:
                    after, before = (_score_then(result, arrivals[k], task) for k in (i, i - 1))
                    pairs.setdefault("new" if i == j else "old", []).append((after, before))
        for kind, of_kind in pairs.items():
            changes.setdefault(kind, []).append(of_kind)
    return {kind: _estimate(of_seeds) for kind, of_seeds in changes.items()}


def adjusted(differences: Sequence[MethodDifference]) -> list[MethodDifference]:
    """The same, with the p-value of each mean adjusted for the number of methods (Holm)."""
    found = holm({d["method"]: d["mean"]["p"] for d in differences if "mean" in d})
    return [{**d, "p_holm": found[d["method"]]} if d["method"] in found else d for d in differences]


def _score_then(result: Result, arrival: ArrivalEntry, task: str) -> ScoreEntry:
    """A task's score after an arrival, with what does not change with it."""
    return {**result["scores"][task], "score": arrival["scores"][task], "items": arrival["items"][task]}


def _gain(a: ScoreEntry, b: ScoreEntry) -> float:
    """How much better the first score is, over the rows that both have."""
    pairs, metric = _pairs(a, b), described(a["metric"])
    if pairs.whole:
        return float(metric.gain(a["score"], b["score"]))
    weights = pairs.tokens if metric.by_tokens else None
    return float(metric.gain(*(np.average(values, weights=weights) for values in (pairs.first, pairs.second))))


def _pairs(a: ScoreEntry, b: ScoreEntry) -> Paired:
    """The items of two scores by row. Raises :class:`CpiftError` where they are of other rows."""
    pairs = paired(a, b)
    if pairs is None or not pairs.first:
        raise CpiftError("two scores have no evaluation rows in common; score both on the same rows")
    return pairs


def _estimate(of_seeds: Sequence[Sequence[Pair]]) -> Difference:
    """Mean gain over pairs of scores and seeds, with its interval over seeds; over items, where there is one seed."""
    values = [fmean(_gain(a, b) for a, b in pairs) for pairs in of_seeds]
    estimate = over_units(values)
    if estimate is None:
        errors = [_item_error(a, b) for a, b in of_seeds[0]]
        rows = min(len(_pairs(a, b).first) for a, b in of_seeds[0])
        estimate = from_error(values[0], math.hypot(*errors) / len(errors), max(1, rows - 1))
    return {"difference": estimate.mean, "low": estimate.low, "high": estimate.high, "p": estimate.p}


def _item_error(a: ScoreEntry, b: ScoreEntry) -> float:
    """Standard error over items of the difference of two scores, paired by item; 0 for a single item."""
    pairs, metric = _pairs(a, b), described(a["metric"])
    gaps = np.array(pairs.first, np.float64) - np.array(pairs.second, np.float64)
    if len(gaps) < 2:
        return 0.0
    weights = np.array(pairs.tokens, np.float64) if metric.by_tokens else np.ones(len(gaps))
    share = weights / weights.sum()
    squares = (share * (gaps - share @ gaps)) ** 2
    return math.sqrt(float(squares.sum()) * len(gaps) / (len(gaps) - 1))
