"""A task's score, as files of scores and comparisons hold it."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


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


class Drift(TypedDict):
    """KL(before ‖ after) on the neutral text, nats a token.

    Attributes:
        kl: mean over all tokens.
        low: lower end of its 95 % interval, over paragraphs.
        high: upper end.
        items: mean of each paragraph.
        tokens: of each paragraph.
    """

    kl: float
    low: float
    high: float
    items: list[float]
    tokens: list[int]


class GuardEntry(TypedDict):
    """What the guard says of one model, as ``guard.json`` of its stage holds it.

    Attributes:
        scores: by set.
        drift: from the model before; absent of that model itself, and without the neutral text.
    """

    scores: Scores
    drift: NotRequired[Drift]


class GuardRecord(TypedDict):
    """What ``scores.json`` holds of the guard.

    Attributes:
        against: the model that the others are compared with.
        models: by name.
        changes: of each other model, each set before and after, as :class:`cpift.metrics.change.Change` has them.
    """

    against: str
    models: dict[str, GuardEntry]
    changes: dict[str, list[dict[str, Any]]]


class ScoresRecord(TypedDict):
    """What ``scores.json`` holds.

    Attributes:
        tasks: names in order.
        groups: in the order of the stages.
        models: scores by model and task.
        summary: by model.
        guard: what must not be lost; absent where the recipe has no guard.
    """

    tasks: list[str]
    groups: list[list[str]] | None
    models: dict[str, Scores]
    summary: dict[str, ModelSummary]
    guard: NotRequired[GuardRecord]
