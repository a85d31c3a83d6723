"""Scores of several models on the same rows: intervals, and each model against the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cpift.metrics import described, intervals
from cpift.metrics.change import Change
from cpift.metrics.score import ScoreEntry, Scores


@dataclass(frozen=True)
class SideBySide:
    """Scores of models on the same tasks.

    Attributes:
        models: what each name stands for, as it was given.
        scores: by name of the model, then by task.
    """

    models: Mapping[str, str]
    scores: Mapping[str, Scores]

    @property
    def first(self) -> str:
        """The model that others are compared with."""
        return next(iter(self.scores))

    def differences(self) -> dict[str, list[Change]]:
        """Each other model after, the first before, by task and paired by row."""
        return {
            name: [Change.between(task, self.scores[self.first][task], entry, new=False) for task, entry in row.items()]
            for name, row in self.scores.items()
            if name != self.first
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON: of one model ``{model, tasks}``; of several ``{models, differences}``."""
        each = {
            name: {"model": self.models[name], "tasks": {task: _with_interval(entry) for task, entry in row.items()}}
            for name, row in self.scores.items()
        }
        if len(each) == 1:
            return each[self.first]
        differences = [
            {
                "model": name,
                "against": self.first,
                "task": change.task,
                "metric": change.metric,
                "difference": change.difference,
                "low": change.low,
                "high": change.high,
                "verdict": change.verdict,
            }
            for name, changes in self.differences().items()
            for change in changes
        ]
        return {"format": "cpift.evaluate/1", "models": each, "differences": differences}

    def lines(self) -> list[str]:
        """One line a task, of the first model."""
        return [
            f"{task}: {entry['metric']} {score_text(entry)}, {len(entry['items'])} rows"
            for task, entry in self.scores[self.first].items()
        ]

    def table(self) -> list[list[str]]:
        """Header, then a line a task: its metric, and each model's score with its interval."""
        body = [
            [task, first["metric"], *(score_text(row[task]) for row in self.scores.values())]
            for task, first in self.scores[self.first].items()
        ]
        return [["task", "metric", *self.scores], *body]

    def difference_lines(self) -> list[str]:
        """One line a model and task: ``tuned − base, maths: +3.0 points (1.2 to 4.8), gained``."""
        return [
            f"{name} − {self.first}, {change.task}: {_difference_text(change)}, {change.verdict}"
            for name, changes in self.differences().items()
            for change in changes
        ]


def score_text(entry: ScoreEntry) -> str:
    """``50.0 % (41.2 to 58.8)``."""
    metric, interval = described(entry["metric"]), intervals.of_score(entry)
    text = metric.value(entry["score"])
    return text if interval is None else f"{text} ({' to '.join(map(metric.unit.number, interval))})"


def _difference_text(change: Change) -> str:
    unit = change.unit
    text = f"{unit.scale * change.difference:+.{unit.digits}f} {unit.difference}"
    if change.low is None or change.high is None:
        return text
    return f"{text} ({unit.number(change.low)} to {unit.number(change.high)})"


def _with_interval(entry: ScoreEntry) -> dict[str, Any]:
    interval = intervals.of_score(entry)
    return {**entry, "interval": None if interval is None else list(interval)}
