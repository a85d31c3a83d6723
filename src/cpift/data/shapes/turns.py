"""Turns of a conversation, as the usual tools write them, to role and content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# ShareGPT, axolotl and LLaMA-Factory have these names for the roles.
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_KNOWN = ("system", "developer", "user", "assistant", "tool", *ROLES, "function_call")


def turns(value: object) -> Any:
    """The turns with role and content; what is none is given back as it is, for the check of rows to refuse.

    Keys of a turn that are null are left out, but for its content: a table gives every turn every key.

    Raises:
        ValueError: a role that is not known, or content that is not text alone.
    """
    return [_turn(turn) if isinstance(turn, dict) else turn for turn in value] if isinstance(value, list) else value


def _turn(turn: Mapping[str, Any]) -> dict[str, object]:
    turn = {key: value for key, value in turn.items() if value is not None or key == "content"}
    if "role" not in turn and "from" in turn:
        role, content = turn.pop("from"), turn.pop("value", turn.pop("content", None))
        if role not in _KNOWN:
            raise ValueError(f"a turn is from {role!r}; known are {', '.join(_KNOWN)}")
        turn = {"role": role, "content": content, **turn}
    role = turn.get("role")
    if role == "function_call":
        return _function_call(turn)
    if isinstance(role, str) and role in ROLES:
        turn["role"] = ROLES[role]
    if isinstance(turn.get("content"), list):
        turn["content"] = _joined(turn["content"])
    return turn


def _joined(parts: list[Any]) -> str:
    """The text of a turn's parts, as templates that know parts write them: one after the other."""
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"the content of a turn has a part of type {kind}; only text can be trained on")
    return "".join(part["text"] for part in parts)


def _function_call(turn: Mapping[str, Any]) -> dict[str, object]:
    """LLaMA-Factory's call of a tool, JSON text of one call or of several, as an assistant turn with tool_calls."""
    try:
        calls = json.loads(turn["content"])
        listed = calls if isinstance(calls, list) else [calls]
        functions = [{"name": call["name"], "arguments": call["arguments"]} for call in listed]
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError("a function_call turn holds no JSON with name and arguments") from error
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }
