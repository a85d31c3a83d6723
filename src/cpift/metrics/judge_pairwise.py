"""A judge model compares each generated answer with the row's own, in both orders."""

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
from cpift.metrics.metric import Asked, Judged, Metric, Scoring

_MARKED = re.compile(r"\bbetter\b[\"'*_\s]*[:=][\"'*_\s\[]*([ABC])\b", re.IGNORECASE)
_ALONE = re.compile(r"\W*([ABC])\W*", re.IGNORECASE)
_REMINDER = "Reply with your decision alone, as one line: Better: <A, B, or C for a tie>"
_NAMES = ("question", "first", "second")


def read_letter(reply: str) -> str | None:
    """The decision in a judge's reply: the last ``Better: A``, or a letter that is all of it; None where there is none."""
    text = reply.rpartition("</think>")[2]
    alone = _ALONE.fullmatch(text)
    letters = _MARKED.findall(text) or ([] if alone is None else [alone[1]])
    return str(letters[-1]).upper() if letters else None


def outcome(first: str, second: str) -> float:
    """1 where the answer wins in both orders, 0 where it loses in both, else 0.5.

    Args:
        first: the letter where the answer is A.
        second: the letter where it is B.
    """
    wins = (first == "A") + (second == "B")
    losses = (first == "B") + (second == "A")
    return 1.0 if wins == 2 else 0.0 if losses == 2 else 0.5


def _prompt(asked: Asked) -> Prompt:
    return Prompt.of(asked.chosen(JudgeSettings), "judge_pairwise.txt", _NAMES, _NAMES)


def _judge_all(asked: Asked, texts: Sequence[str], rows: Sequence[Row]) -> Judged:
    settings, prompt, given = asked.chosen(JudgeSettings), _prompt(asked), sent_answers(asked, texts)
    questions = []
    for i, answer in given.items():
        pair = answer, reference_of(rows[i])
        for a, b in (pair, pair[::-1]):
            questions.append(prompt.filled({"question": question_of(rows[i]), "first": a, "second": b}))
    letters, usage = ask_all(settings, questions, read_letter, _REMINDER)
    items: list[float | None] = [0.0] * len(texts)
    for place, i in enumerate(given):
        first, second = letters[2 * place], letters[2 * place + 1]
        items[i] = None if first is None or second is None else outcome(first, second)
    return Judged(items, usage.counts())


JUDGE_PAIRWISE = Metric(
    name="judge_pairwise",
    label="preferred by the judge",
    summary="a judge model compares the generated answer with the row's own, in both orders: 1 won, 0 lost, else 0.5",
    rows="the assistant's text, which is compared with",
    scoring=Scoring.GENERATED,
    axis="preferred, %",
    check=checked_by("judge_pairwise", _prompt),
    judge_all=_judge_all,
    identity=identified_by(_prompt),
    settings=JudgeSettings,
)
