"""What a task's score was before and after something was added, paired by evaluation row."""

from __future__ import annotations

from dataclasses import dataclass

from cpift.metrics import described, intervals
from cpift.metrics.metric import Unit
from cpift.metrics.score import ScoreEntry


@dataclass(frozen=True)
class Change:
    """One task.

    Attributes:
        task: its name.
        metric: name of its metric.
        new: was it added, or there before?
        before: score before.
        after: score after.
        difference: after minus before.
        low: lower end of its 95 % interval; None where the rows cannot be paired.
        high: upper end.
        rows: evaluation rows.
        guard: is it no task, but a set of the guard?
    """

    task: str
    metric: str
    new: bool
    before: float
    after: float
    difference: float
    low: float | None
    high: float | None
    rows: int
    guard: bool = False

    @classmethod
    def between(cls, task: str, before: ScoreEntry, after: ScoreEntry, new: bool, guard: bool = False) -> Change:
        """The change from one score to another.

        Args:
            task: the task's name.
            before: a score.
            after: another of the same rows.
            new: was the task added?
            guard: is it a set of the guard?
        """
        paired = intervals.of_difference(after, before)
        low, high = (paired[1], paired[2]) if paired else (None, None)
        difference = paired[0] if paired else after["score"] - before["score"]
        rows = len(after["items"])
        return cls(task, after["metric"], new, before["score"], after["score"], difference, low, high, rows, guard)

    @property
    def unit(self) -> Unit:
        """How its values are written."""
        return described(self.metric).unit

    @property
    def gain(self) -> float:
        """How much better it became, in the metric's own unit: positive is better."""
        return described(self.metric).gain(self.after, self.before)

    @property
    def verdict(self) -> str:
        """``gained``, ``lost``, or ``no difference beyond noise`` where the interval holds zero."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "no difference beyond noise"
        return "gained" if (self.low > 0) == described(self.metric).higher_is_better else "lost"
