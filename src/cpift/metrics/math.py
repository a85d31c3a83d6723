"""Mathematics that is equal though spelt otherwise, as 1/2 and 0.5, by the package math-verify."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import ModuleType

from cpift.metrics.answers import Row, references_or_response
from cpift.metrics.metric import Asked, Judge, Metric, Scoring
from cpift.metrics.packages import load, missing

SECONDS = 5  # for one expression to be read, and for two to be compared


def _judge(asked: Asked) -> Judge:
    package, pattern = load("math_verify", "math"), asked.pattern
    # Its limits on time are signals, which only the main thread gets.
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None

    def judge(text: str, row: Row) -> float:
        answer = text if pattern is None else pattern.find(text)
        if answer is None:
            return 0.0
        given = _parsed(package, answer, limit)
        wanted = [_parsed(package, reference, limit) for reference in references_or_response(row, pattern)]
        return float(any(package.verify(gold, given, timeout_seconds=limit) for gold in wanted))

    return judge


def _parsed(package: ModuleType, text: str, limit: int | None) -> list[object]:
    """The expressions in a text; bare LaTeX or algebra, such as x^2+1, is read as a formula."""
    found: list[object] = package.parse(text, parsing_timeout=limit)
    if found or "$" in text or "\n" in text.strip():
        return found
    formula: list[object] = package.parse(f"${text.strip()}$", parsing_timeout=limit)
    return formula


def _check(rows: Sequence[Row], asked: Asked) -> str | None:
    problem = missing("math_verify", "math")
    return problem and f"metric math {problem}"


MATH = Metric(
    name="math",
    label="mathematical equality",
    summary="the last expression of the generated answer equals a reference mathematically (math-verify)",
    rows="`answer`, else the assistant's text holds the reference",
    scoring=Scoring.GENERATED,
    axis="right, %",
    card_type="accuracy",
    check=_check,
    judge=_judge,
)
