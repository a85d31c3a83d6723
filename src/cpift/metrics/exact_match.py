"""Exact match: the greedy continuation equals the reference."""

from __future__ import annotations

from collections.abc import Sequence

from cpift.metrics.answers import Row, composed, is_right, references, response
from cpift.metrics.metric import Asked, Judge, Metric, Scoring


def _check(rows: Sequence[Row], asked: Asked) -> str | None:
    if asked.pattern is not None:
        return None
    if any(composed(response(row)) not in _texts(row) for row in rows):
        return "the answers are not the whole assistant text; add a pattern that extracts them, such as pattern: '#### (.+)'"
    if not asked.explicit and all("####" in response(row) for row in rows):
        return (
            "every answer has '####' before its result, as in gsm8k; add pattern: '#### (.+)' to "
            "compare the results, or metric: loss; metric: exact_match compares the whole text"
        )
    return None


def _judge(asked: Asked) -> Judge:
    pattern = asked.pattern
    if pattern is None:  # as the teacher-forced forward judges: the text itself
        return lambda text, row: float(composed(text).strip() in _texts(row))
    return lambda text, row: float(is_right(text, row, pattern))


def _texts(row: Row) -> set[str]:
    return {composed(reference).strip() for reference in references(row)}


EXACT_MATCH = Metric(
    name="exact_match",
    label="exact match",
    summary="the greedy answer is the reference, letter by letter; with a pattern, what it extracts from both is compared",
    rows="`answer`: text, a number, or a list of which any is right",
    scoring=Scoring.EXACT,
    axis="right, %",
    needs_answer=True,
    card_type="exact_match",
    check=_check,
    judge=_judge,
)
