"""A task's score, as files of scores and comparisons hold it."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class ScoreEntry(TypedDict):
    """One task's score.

    Attributes:
        metric: its metric's name.
        score: in the metric's unit.
        items: the outcome of each row.
        tokens: of each row: those scored, or generated.
        left_out: rows that have no token to score.
        precision: ``fp32`` or ``bf16 autocast``.
        rows: number of each item's row from 0, where some rows are left out.
        notes: counts of the metric's, such as tokens that a judge was paid for.
    """

    metric: str
    score: float
    items: list[float]
    tokens: list[int]
    left_out: NotRequired[int]
    precision: NotRequired[str]
    rows: NotRequired[list[int]]
    notes: NotRequired[dict[str, int]]


Scores = dict[str, ScoreEntry]
"""Scores by task."""


class ModelSummary(TypedDict):
    """A model's scores in short.

    Attributes:
        shares: of the specialist's score, by task; None where that is zero.
        mean_share: over the tasks that have one.
        worst_task: the task with the least share.
        mean_score: over the tasks whose scores are shares of the best possible one.
        below_base: tasks more than 5 % below the base.
        below_specialist: tasks more than 5 % below their own probe.
    """

    shares: dict[str, float | None]
    mean_share: float | None
    worst_task: str | None
    mean_score: float | None
    below_base: int
    below_specialist: int


class ScoresRecord(TypedDict):
    """What ``scores.json`` holds.

    Attributes:
        tasks: names in order.
        groups: in the order of the stages.
        models: scores by model and task.
        summary: by model.
        neutral_loss: in nats, by model.
    """

    tasks: list[str]
    groups: list[list[str]] | None
    models: dict[str, Scores]
    summary: dict[str, ModelSummary]
    neutral_loss: dict[str, float]
