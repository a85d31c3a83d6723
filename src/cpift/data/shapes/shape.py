"""What a shape of rows is, and what the shapes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
OWN_COLUMNS = ("messages", "prompt", "completion")  # what a converted row is made of


@dataclass(frozen=True)
class Shape:
    """One usual shape of training rows."""

    name: str
    """What ``shape:`` in a recipe calls it."""
    columns: str
    """The columns that it needs and takes, for people."""
    trained: str
    """What the loss is taken on, for people."""
    rank: int
    """Of several shapes that fit a row, those of the lowest rank count; two of them are ambiguous."""
    uses: tuple[str, ...]
    """Every column that ``convert`` may read; these are what ``columns:`` in a recipe may name."""
    recognises: Callable[[Mapping[str, Any]], bool]
    """Has a row the columns of this shape?"""
    convert: Callable[[Mapping[str, Any]], Row | None]
    """The row as messages, or as prompt and completion; None where its response is empty. Raises ValueError."""
    excludes: tuple[str, ...] = ()
    """Beside one of these columns the shape is not found by itself: ``shape:`` in the recipe must ask for it."""

    @property
    def summary(self) -> str:
        """One line for command help."""
        return self.columns


def text_of(row: Mapping[str, object], *columns: str) -> str:
    """The text of the first of some columns that the row has; empty where it has none.

    Raises:
        ValueError: the column holds something else than text or a number.
    """
    for column in columns:
        value = row.get(column)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"the column {column} holds {type(value).__name__}, where text is needed")
        return str(value)
    return ""


def chat(row: Mapping[str, object], used: tuple[str, ...], system: str, prompt: str, response: str) -> Row | None:
    """A conversation of one question and its answer, with the row's other columns as they are.

    Args:
        row: the row as it was given.
        used: columns that are in the conversation, and not needed any more.
        system: an instruction ahead of the conversation; empty: none.
        prompt: what the user asks.
        response: what the assistant answers.

    Returns:
        The row, or None where the response is empty.

    Raises:
        ValueError: the prompt is empty.
    """
    if not response.strip():
        return None
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    messages = [{"role": "system", "content": system}] if system.strip() else []
    messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"messages": messages, **others(row, used)}


def others(row: Mapping[str, object], used: tuple[str, ...]) -> Row:
    """The columns of a row that its conversation does not use, nor hold one of their own."""
    return {key: value for key, value in row.items() if key not in used and key not in OWN_COLUMNS}
