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
    """

    metric: str
    score: float
    items: list[float]
    tokens: list[int]
    left_out: NotRequired[int]
    precision: NotRequired[str]


Scores = dict[str, ScoreEntry]
"""Scores by task."""
