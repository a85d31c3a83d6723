"""A completion without a prompt: all of it is learnt."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.shape import Row, Shape, others, text_of
from cpift.data.shapes.text import NOT_ALONE


def _convert(row: Mapping[str, object]) -> Row | None:
    text = text_of(row, "completion")
    return {"prompt": "", "completion": text, **others(row, ())} if text.strip() else None


COMPLETION = Shape(
    name="completion",
    columns="completion, with no column for a prompt or a label beside it",
    trained="all of the completion, and the end token; no chat template; scored by loss only",
    rank=2,
    uses=("completion",),
    recognises=lambda row: "completion" in row,
    convert=_convert,
    excludes=("text", *(name for name in NOT_ALONE if name != "completion")),
)
