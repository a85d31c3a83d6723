"""Conversations under ``messages``, as TRL and the chat APIs take them."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.shape import Row, Shape
from cpift.data.shapes.turns import turns


def _convert(row: Mapping[str, object]) -> Row:
    return {**row, "messages": turns(row["messages"])}


MESSAGES = Shape(
    name="messages",
    columns="messages: a list of role and content",
    trained="every assistant turn",
    rank=0,
    uses=("messages", "tools", "chat_template_kwargs"),
    recognises=lambda row: "messages" in row,
    convert=_convert,
)
