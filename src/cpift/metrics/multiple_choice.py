"""Multiple choice: is the right option the most likely one, by its likelihood a character?

Normalised as lm-eval's ``acc_norm``: the log-likelihood of an option's tokens, over its length in characters.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from cpift.metrics.answers import Row
from cpift.metrics.metric import Asked, Metric, Scoring


def options_of(row: Row) -> list[str]:
    """The options of a row, as text.

    Raises:
        ValueError: there are fewer than two, an empty one, or two alike.
    """
    given = row.get("options", row.get("choices"))
    if isinstance(given, Mapping):  # as in allenai/ai2_arc: text and label
        given = given.get("text")
    if not isinstance(given, list) or not all(isinstance(option, str | int | float) for option in given):
        raise ValueError("needs its options as a list of texts, under options or choices")
    options = [str(option).strip() for option in given]
    if len(options) < 2 or not all(options) or len(set(options)) < len(options):
        raise ValueError("needs at least two options, none empty, all different")
    return options


def right_option(row: Row) -> int:
    """Index of the right option: ``answer`` is its index from 0, its text, its letter, or its label.

    Raises:
        ValueError: it is none of these, or could be two of them.
    """
    options, answer = options_of(row), row.get("answer", row.get("answerKey"))
    if isinstance(answer, float) and answer.is_integer():  # what a table with gaps makes of an integer
        answer = int(answer)
    readings = set[int]()
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        readings.add(answer)
    text = str(answer).strip()
    if text in options:
        readings.add(options.index(text))
    if isinstance(answer, str) and not readings:
        labels = _labels(row, len(options))
        if text in labels:
            readings.add(labels.index(text))
    if not readings:
        raise ValueError(f"has the answer {answer!r}, which is no option, nor the index or letter of one")
    if len(readings) > 1:
        raise ValueError(
            f"has the answer {answer!r}, which is an option and the index of another; give its text or letter"
        )
    return readings.pop()


def _labels(row: Row, count: int) -> list[str]:
    given = row.get("choices")
    if isinstance(given, Mapping) and isinstance(given.get("label"), list):
        return [str(label) for label in given["label"]]
    return list(string.ascii_uppercase[:count])


def _check(rows: Sequence[Row], asked: Asked) -> str | None:
    if asked.pattern is not None:
        return "metric multiple_choice generates no text; leave out pattern"
    for number, row in enumerate(rows, start=1):
        try:
            right_option(row)
        except ValueError as error:
            return f"evaluation row {number} {error}"
    return None


MULTIPLE_CHOICE = Metric(
    name="multiple_choice",
    label="multiple choice",
    summary="the right option is the most likely one, by log-likelihood over characters, as lm-eval's acc_norm",
    rows="`options` or `choices`: a list; `answer`: the right one's text, letter, or index from 0",
    scoring=Scoring.OPTIONS,
    axis="right, %",
    card_type="accuracy",
    check=_check,
)
