"""ROUGE-L: the longest common subsequence of words, by the package rouge-score."""

from __future__ import annotations

from collections.abc import Sequence

from cpift.metrics.answers import Row, references_or_response
from cpift.metrics.metric import Asked, Judge, Metric, Scoring
from cpift.metrics.packages import load, missing


def _judge(asked: Asked) -> Judge:
    scorer = load("rouge_score.rouge_scorer", "eval").RougeScorer(["rougeL"])
    pattern = asked.pattern

    def judge(text: str, row: Row) -> float:
        answer = text if pattern is None else pattern.find(text)
        if answer is None:
            return 0.0
        wanted = references_or_response(row, pattern)
        return max(float(scorer.score(reference, answer)["rougeL"].fmeasure) for reference in wanted)

    return judge


def _check(rows: Sequence[Row], asked: Asked) -> str | None:
    problem = missing("rouge_score", "eval")
    return problem and f"metric rouge {problem}"


ROUGE = Metric(
    name="rouge",
    label="ROUGE-L",
    summary="ROUGE-L F1 of the generated answer against the best of its references (rouge-score, without stemming)",
    rows="`answer`, else the assistant's text is the reference",
    scoring=Scoring.GENERATED,
    axis="ROUGE-L, %",
    card_type="rouge",
    check=_check,
    judge=_judge,
)
