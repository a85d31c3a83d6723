"""Prompt and completion, both plain text or both messages, as TRL takes them."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.shape import Row, Shape
from cpift.data.shapes.turns import turns


def _convert(row: Mapping[str, object]) -> Row:
    kept = {key: value for key, value in row.items() if key != "messages"}
    return {**kept, "prompt": turns(row["prompt"]), "completion": turns(row["completion"])}


PROMPT_COMPLETION = Shape(
    name="prompt_completion",
    columns="prompt and completion: both text, which no chat template changes, or both lists of role and content",
    trained="the completion",
    rank=0,
    uses=("prompt", "completion"),
    recognises=lambda row: "prompt" in row and "completion" in row,
    convert=_convert,
)
