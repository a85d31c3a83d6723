"""The shapes of rows that are known: a new one is a file beside this and a line in the table."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.alpaca import ALPACA
from cpift.data.shapes.completion import COMPLETION
from cpift.data.shapes.messages import MESSAGES
from cpift.data.shapes.multiple_choice import MULTIPLE_CHOICE
from cpift.data.shapes.preference import refuse_preferences
from cpift.data.shapes.prompt_completion import PROMPT_COMPLETION
from cpift.data.shapes.prompt_response import PROMPT_RESPONSE
from cpift.data.shapes.question_answer import QUESTION_ANSWER
from cpift.data.shapes.shape import Row, Shape
from cpift.data.shapes.sharegpt import SHAREGPT
from cpift.data.shapes.text import TEXT
from cpift.table import Table

SHAPES = Table(
    "shape",
    [
        MESSAGES,
        PROMPT_COMPLETION,
        SHAREGPT,
        ALPACA,
        MULTIPLE_CHOICE,
        QUESTION_ANSWER,
        PROMPT_RESPONSE,
        TEXT,
        COMPLETION,
    ],
)
OWN = (MESSAGES.name, PROMPT_COMPLETION.name)  # what all others are converted to


def known_columns() -> list[str]:
    """Every column that a shape of the table reads: what ``columns:`` in a recipe may name."""
    return list(dict.fromkeys(["answer", *(name for shape in SHAPES.values() for name in shape.uses)]))


def recognise(row: Mapping[str, object], wanted: str | None = None) -> Shape:
    """The shape of a row.

    Args:
        row: a row as it was given.
        wanted: the shape that the recipe names; None: found by the row's columns.

    Raises:
        ValueError: no shape fits, or several do; with the columns and the known shapes.
    """
    columns = ", ".join(map(str, row)) or "nothing"
    if wanted is not None:
        if not SHAPES[wanted].recognises(row):
            raise ValueError(f"is not of the shape {wanted}, which needs {SHAPES[wanted].columns}; it has {columns}")
        return SHAPES[wanted]
    fitting = [s for s in SHAPES.values() if s.recognises(row) and not any(name in row for name in s.excludes)]
    if MESSAGES not in fitting:
        refuse_preferences(row)
    fitting = [shape for shape in fitting if shape.rank == min(other.rank for other in fitting)]
    if len(fitting) > 1:
        names = " and ".join(shape.name for shape in fitting)
        raise ValueError(f"fits the shapes {names}, by its columns {columns}; shape: in the recipe says which it is")
    if not fitting:
        raise ValueError(
            f"has neither messages nor prompt and completion, but {columns}; known shapes are "
            f"{', '.join(SHAPES)} (docs/data.md); columns: of the task gives these columns other names "
            "(cpift add: --set 'tasks.NAME.columns={question: A, answer: B}')"
        )
    return fitting[0]


__all__ = ["OWN", "SHAPES", "Row", "Shape", "known_columns", "recognise"]
