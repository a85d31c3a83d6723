"""Generated answers, compared after normalising, or judged by the scorer of the generated task."""

from __future__ import annotations

from cpift.metrics.answers import Row, is_right
from cpift.metrics.metric import Asked, Judge, Metric, Scoring
from cpift.metrics.packages import load


def _judge(asked: Asked) -> Judge:
    pattern = asked.pattern
    if asked.generator is None:
        return lambda text, row: float(is_right(text, row, pattern))
    scorer = load("reasoning_gym", "generate").get_score_answer_fn(asked.generator)

    def judge(text: str, row: Row) -> float:
        answer = text if pattern is None else pattern.find(text)
        return 0.0 if answer is None else float(scorer(answer.strip(), row["entry"]))

    return judge


GENERATE = Metric(
    name="generate",
    label="exact match of the generated answer",
    summary="the answer is generated; case, white space and a final full stop do not count. Of a generated task: its own scorer",
    rows="`answer`, as for exact_match",
    scoring=Scoring.GENERATED,
    axis="right, %",
    needs_answer=True,
    card_type="exact_match",
    judge=_judge,
)
