"""ShareGPT's conversations, and those of the tools that have taken its form over."""

from __future__ import annotations

from collections.abc import Mapping

from cpift.data.shapes.shape import Row, Shape, others, text_of
from cpift.data.shapes.turns import turns

_NAMES = ("conversations", "conversation")


def _convert(row: Mapping[str, object]) -> Row:
    name = next(name for name in _NAMES if name in row)
    messages, system = turns(row[name]), text_of(row, "system", "system_prompt")
    if system.strip() and isinstance(messages, list):
        if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
            raise ValueError("has a system column, and a system turn as well")
        messages = [{"role": "system", "content": system}, *messages]
    return {"messages": messages, **others(row, (name, "system", "system_prompt"))}


SHAREGPT = Shape(
    name="sharegpt",
    columns="conversations: a list of from (human, gpt, system, tool) and value, or of role and content; system",
    trained="every assistant turn",
    rank=0,
    uses=(*_NAMES, "system", "system_prompt", "tools"),
    recognises=lambda row: any(name in row for name in _NAMES),
    convert=_convert,
)
