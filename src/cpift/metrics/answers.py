"""Reference answers of a row, and whether a generated text gives one of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
_WHOLE = (str, int, float)  # bool is an int


def references(row: Row) -> list[str]:
    """The answers that count as right, as text. A list gives several; a row with an empty answer, or without one, none.

    Args:
        row: a row of a task.

    Raises:
        ValueError: the answer is neither text, a number, nor a list of these.
    """
    answer = row.get("answer")
    given = answer if isinstance(answer, list) else [] if answer is None else [answer]
    values = [value for value in given if value != ""]
    wrong = next((value for value in values if not isinstance(value, _WHOLE)), None)
    if values and (wrong is not None or None in values):
        raise ValueError(f"answer holds {type(wrong).__name__}; it is text, a number, or a list of these")
    return [form for value in values for form in _forms(value)]


def _forms(value: object) -> list[str]:
    """42.0, which a table with gaps makes of 42, is also right as 42."""
    if isinstance(value, float) and value.is_integer():
        return [str(value), str(int(value))]
    return [str(value)]


@dataclass(frozen=True)
class AnswerPattern:
    """Where an answer is within a text: regular expressions, tried in order.

    Attributes:
        expressions: the first one that finds something gives the answer.
        first: takes the first match of an expression; otherwise the last.
    """

    expressions: tuple[re.Pattern[str], ...]
    first: bool = False

    @classmethod
    def of(cls, pattern: str | Sequence[str] | None, match: str = "last") -> AnswerPattern | None:
        """The patterns of a recipe; None where there are none.

        Args:
            pattern: one regular expression or several.
            match: ``first`` or ``last``.
        """
        if not pattern:
            return None
        given = [pattern] if isinstance(pattern, str) else pattern
        return cls(tuple(re.compile(expression) for expression in given), match == "first")

    def find(self, text: str) -> str | None:
        r"""The first group of a match, or the whole match of an expression without groups.

        None where nothing matches, or where the group takes no part in the match. Empty matches do not count: an
        expression such as ``(\d*)`` finds one at the end of every text, and all answers would be alike.
        """
        for expression in self.expressions:
            group = 1 if expression.groups else 0
            matches = [match for match in expression.finditer(text) if match.group().strip()]
            if matches:
                found: str | None = matches[0 if self.first else -1].group(group)
                if found is not None and found.strip():
                    return found
        return None


def normalise(text: str) -> str:
    """Case, white space, a full stop at the end and separators within numbers do not count, nor how accents are coded."""
    text = " ".join(composed(text).split()).casefold()
    without_stop = text.rstrip(".").strip()
    return re.sub(r"(?<=\d),(?=\d{3})", "", without_stop or text)


def composed(text: str) -> str:
    """The text with accents composed (NFC), as some tokenizers give it back whatever they were given."""
    return unicodedata.normalize("NFC", text)


def is_right(text: str, row: Row, pattern: AnswerPattern | None) -> bool:
    """Does a text give one of the row's answers?

    The pattern is applied to the references too: what it finds in one is the reference, else the reference is taken
    whole. A text in which the pattern finds nothing is wrong, whatever the reference.

    Args:
        text: what the model generated.
        row: a row with an ``answer``.
        pattern: where the answer is within the text.

    Raises:
        ValueError: as :func:`references`.
    """
    answer = text if pattern is None else pattern.find(text)
    if answer is None:
        return False
    return normalise(answer) in {normalise(reference) for reference in wanted(row, pattern)}


def wanted(row: Row, pattern: AnswerPattern | None) -> list[str]:
    """The row's references, as the pattern finds them.

    Args:
        row: a row with an ``answer``.
        pattern: where the answer is within a text; a reference in which it finds nothing is taken whole.

    Raises:
        ValueError: as :func:`references`.
    """
    if pattern is None:
        return references(row)
    return [reference if (found := pattern.find(reference)) is None else found for reference in references(row)]


def references_or_response(row: Row, pattern: AnswerPattern | None) -> list[str]:
    """The row's references, as the pattern finds them; of a row without an answer the text of its last turn.

    Args:
        row: a row with a conversation.
        pattern: where the answer is within a text.

    Raises:
        ValueError: as :func:`references`.
    """
    return wanted(row if references(row) else {"answer": response(row)}, pattern)


def turns(row: Row) -> Sequence[Mapping[str, object]]:
    """The messages of a row, or those of its completion; plain text is the assistant's."""
    given = row["messages"] if "messages" in row else row["completion"]
    return [{"role": "assistant", "content": given}] if isinstance(given, str) else given


def response(row: Row) -> str:
    """The text of the last turn."""
    return str(turns(row)[-1].get("content") or "").strip()


def answer_is_text(row: Row) -> bool:
    """Is the answer, and no other one, the whole of the last assistant turn? Then no generation is needed to score it."""
    answer = row.get("answer")
    given = answer if isinstance(answer, list) else [answer]
    text = composed(response(row))
    return bool(given) and all(text == composed(str(value)).strip() for value in given)


def may_be_forced(rows: Sequence[Row], pattern: AnswerPattern | None) -> bool:
    """May one teacher-forced forward give exact match?

    Not with a pattern, which takes the answer out of what is generated; nor where one of several answers may come.
    """
    return pattern is None and all(answer_is_text(row) for row in rows)
