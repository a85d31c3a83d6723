"""A judge model rates each generated answer from 0 to 10."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cpift.metrics.answers import Row
from cpift.metrics.judging import (
    JudgeSettings,
    Prompt,
    ask_all,
    checked_by,
    identified_by,
    question_of,
    reference_of,
    sent_answers,
)
from cpift.metrics.metric import OF_TEN, Asked, Judged, Metric, Scoring

_MARKED = re.compile(r"\bscore\b[\"'*_\s]*[:=][\"'*_\s\[]*(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_ALONE = re.compile(r"\W*(-?\d+(?:\.\d+)?)\W*(?:/\s*10)?\W*")
_REMINDER = "Reply with your rating alone, as one line: Score: <number from 0 to 10>"
_NAMES = ("question", "answer", "reference")


def read_score(reply: str) -> float | None:
    """The rating in a judge's reply: the last ``Score: 7``, or a number that is all of it; None where there is none."""
    text = reply.rpartition("</think>")[2]
    alone = _ALONE.fullmatch(text)
    numbers = _MARKED.findall(text) or ([] if alone is None else [alone[1]])
    return float(numbers[-1]) if numbers and 0 <= float(numbers[-1]) <= 10 else None


def _prompt(asked: Asked) -> Prompt:
    return Prompt.of(asked.chosen(JudgeSettings), "judge.txt", ("question", "answer"), _NAMES)


def _judge_all(asked: Asked, texts: Sequence[str], rows: Sequence[Row]) -> Judged:
    settings, prompt, given = asked.chosen(JudgeSettings), _prompt(asked), sent_answers(asked, texts)
    questions = [
        prompt.filled({"question": question_of(rows[i]), "answer": answer, "reference": reference_of(rows[i])})
        for i, answer in given.items()
    ]
    verdicts, usage = ask_all(settings, questions, read_score, _REMINDER)
    items: list[float | None] = [0.0] * len(texts)
    for i, verdict in zip(given, verdicts, strict=True):
        items[i] = None if verdict is None else verdict / 10
    return Judged(items, usage.counts())


JUDGE = Metric(
    name="judge",
    label="judge, 0 to 10",
    summary="a judge model of an OpenAI-compatible endpoint rates the generated answer from 0 to 10; rows are sent to it",
    rows="none beside the conversation",
    scoring=Scoring.GENERATED,
    axis="judged, of 10",
    unit=OF_TEN,
    check=checked_by("judge", _prompt),
    judge_all=_judge_all,
    identity=identified_by(_prompt),
    settings=JudgeSettings,
)
