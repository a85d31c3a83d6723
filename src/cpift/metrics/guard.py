"""What a guard set says: what was lost beside what was gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from cpift.metrics import intervals
from cpift.metrics.change import Change
from cpift.metrics.loss import LOSS
from cpift.metrics.score import Drift, GuardEntry, GuardRecord, ScoreEntry, Scores


def drift_of(items: list[float], tokens: list[int]) -> Drift:
    """The drift from its paragraphs: means in nats, and tokens."""
    kl = sum(item * count for item, count in zip(items, tokens, strict=True)) / sum(tokens)
    score: ScoreEntry = {
        "metric": LOSS.name,
        "score": kl,
        "items": items,
        "tokens": tokens,
    }  # like a loss, never below 0
    low, high = intervals.of_score(score) or (0.0, kl)
    return {"kl": kl, "low": low, "high": high, "items": items, "tokens": tokens}


def guard_changes(before: Scores, after: Scores) -> list[Change]:
    """Each set before and after, paired by row.

    Args:
        before: scores by set.
        after: of another model.
    """
    return [Change.between(name, before[name], after[name], False, guard=True) for name in before if name in after]


def guard_record(against: str, models: Mapping[str, GuardEntry]) -> GuardRecord:
    """What ``scores.json`` holds.

    Args:
        against: name of the model before.
        models: what the guard says of each, that model among them.
    """
    before = models[against]["scores"]
    changes = {
        name: [asdict(change) for change in guard_changes(before, entry["scores"])]
        for name, entry in models.items()
        if name != against
    }
    return {"against": against, "models": dict(models), "changes": changes}


__all__ = ["Drift", "GuardEntry", "GuardRecord", "drift_of", "guard_changes", "guard_record"]
