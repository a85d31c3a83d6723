"""The scores table: models × tasks, each also as a share of the single-task probe's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpift.metrics import described
from cpift.metrics.score import ModelSummary, ScoreEntry

SLACK = 0.05  # a share this much below another counts as worse


def share_of(metric: str, score: float, reference: float) -> float | None:
    """``score`` as a share of ``reference``, 1.0 = as good; None where that would divide by zero."""
    return described(metric).share(score, reference)


def summary(scores: Mapping[str, Mapping[str, ScoreEntry]], tasks: Sequence[str]) -> dict[str, ModelSummary]:
    """Per model: shares of the specialists, their mean, the worst task, and how many tasks fell behind.

    Args:
        scores: model name to task to a score's dict; the probe of task t is the model ``probe/t``, θ⁰ is ``base``.
        tasks: names in order.
    """
    result: dict[str, ModelSummary] = {}
    for model, row in scores.items():
        shares: dict[str, float | None] = {}
        below_base = below_specialist = 0
        for task in tasks:
            if task not in row:
                continue
            metric, score = row[task]["metric"], row[task]["score"]
            specialist = scores.get(f"probe/{task}", {}).get(task)
            base = scores.get("base", {}).get(task)
            shares[task] = share_of(metric, score, specialist["score"]) if specialist else None
            below_specialist += bool(specialist and _worse(metric, score, specialist["score"]))
            below_base += bool(base and _worse(metric, score, base["score"]))
        known = {task: share for task, share in shares.items() if share is not None}
        right = [row[task]["score"] for task in tasks if task in row and described(row[task]["metric"]).unit.bounded]
        result[model] = {
            "shares": shares,
            "mean_share": sum(known.values()) / len(known) if known else None,
            "worst_task": min(known, key=lambda task: known[task]) if known else None,
            "mean_score": sum(right) / len(right) if right else None,  # over the tasks whose scores are shares
            "below_base": below_base,
            "below_specialist": below_specialist,
        }
    return result


def _worse(metric: str, score: float, reference: float) -> bool:
    """Worse than the reference by more than 5 % of it."""
    if described(metric).higher_is_better:
        return score < reference * (1 - SLACK)
    return score > reference * (1 + SLACK)
