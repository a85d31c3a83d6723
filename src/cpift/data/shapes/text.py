"""Plain text: all of it is learnt, as in TRL's language modelling."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.shape import Row, Shape, others, text_of

# Beside one of these, a text is only a part of the row.
NOT_ALONE = (
    *("prompt", "question", "query", "problem", "instruction", "input"),
    *("output", "response", "answer", "completion"),
    *("label", "labels", "target", "summary", "intent"),
)


def _convert(row: Mapping[str, object]) -> Row | None:
    text = text_of(row, "text")
    return {"prompt": "", "completion": text, **others(row, ("text",))} if text.strip() else None


TEXT = Shape(
    name="text",
    columns="text, with no column for a prompt, a response or a label beside it",
    trained="all of the text, and the end token; no chat template; scored by loss only",
    rank=2,
    uses=("text",),
    recognises=lambda row: "text" in row,
    convert=_convert,
    excludes=NOT_ALONE,
)
