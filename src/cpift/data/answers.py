"""Reference answers of a row, and whether a generated text gives one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_WHOLE = (str, int, float)  # bool is an int


def references(row: Mapping[str, Any]) -> list[str]:
    """The answers that count as right, as text. A list gives several; a row without an answer gives none.

    Args:
        row: a row of a task.

    Raises:
        ValueError: the answer is neither text, a number, nor a list of these.
    """
    answer = row.get("answer")
    values = answer if isinstance(answer, list) else [] if answer is None else [answer]
    wrong = next((value for value in values if not isinstance(value, _WHOLE)), None)
    if values and (wrong is not None or None in values):
        raise ValueError(f"answer holds {type(wrong).__name__}; it is text, a number, or a list of these")
    return [form for value in values for form in _forms(value)]


def _forms(value: Any) -> list[str]:
    """42.0, which a table with gaps makes of 42, is also right as 42."""
    if isinstance(value, float) and value.is_integer():
        return [str(value), str(int(value))]
    return [str(value)]


def extract(text: str, pattern: re.Pattern[str] | None) -> str | None:
    """The answer within a text.

    Args:
        text: a generated or a reference text.
        pattern: where the answer is; None: the text is the answer.

    Returns:
        The first group of the last match, or the whole match of a pattern without groups. None where nothing
        matches, or where the group takes no part in the match.
    """
    if pattern is None:
        return text
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    found: str | None = matches[-1].group(1) if pattern.groups else matches[-1].group(0)
    return found


def normalise(text: str) -> str:
    """Case, white space, a full stop at the end and separators within numbers do not count."""
    text = " ".join(text.split()).casefold().rstrip(".").strip()
    return re.sub(r"(?<=\d),(?=\d{3})", "", text)


def is_right(text: str, row: Mapping[str, Any], pattern: re.Pattern[str] | None) -> bool:
    """Does a text give one of the row's answers?

    The pattern is applied to the references too: where it matches one, its group is the reference, else the
    reference is taken whole. A text in which the pattern finds nothing is wrong, whatever the reference.

    Args:
        text: what the model generated.
        row: a row with an ``answer``.
        pattern: where the answer is within the text.

    Raises:
        ValueError: as :func:`references`.
    """
    answer = extract(text, pattern)
    if answer is None:
        return False
    wanted = [reference if (found := extract(reference, pattern)) is None else found for reference in references(row)]
    return normalise(answer) in {normalise(reference) for reference in wanted}
