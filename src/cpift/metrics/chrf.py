"""chrF: n-grams of characters, by the package sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence

from cpift.metrics.answers import Row, references_or_response
from cpift.metrics.metric import Asked, Judge, Metric, Scoring
from cpift.metrics.packages import load, missing


def _judge(asked: Asked) -> Judge:
    scorer, pattern = load("sacrebleu.metrics", "eval").CHRF(), asked.pattern

    def judge(text: str, row: Row) -> float:
        answer = text if pattern is None else pattern.find(text)
        if answer is None:
            return 0.0
        wanted = references_or_response(row, pattern)
        return min(1.0, float(scorer.sentence_score(answer, wanted).score) / 100)

    return judge


def _check(rows: Sequence[Row], asked: Asked) -> str | None:
    problem = missing("sacrebleu", "eval")
    return problem and f"metric chrf {problem}"


CHRF = Metric(
    name="chrf",
    label="chrF",
    summary="chrF2 of each generated answer against its references, mean over rows (sacrebleu's sentence score)",
    rows="`answer`, else the assistant's text is the reference",
    scoring=Scoring.GENERATED,
    axis="chrF, %",
    card_type="chrf",
    check=_check,
    judge=_judge,
)
