"""Can a row be trained on? Its shape, its texts, and keys that would change what is learnt."""

from __future__ import annotations

import json
from typing import Any

from cpift.data.row_keys import check_row_keys
from cpift.errors import CpiftError

Row = dict[str, Any]


def json_line(row: object, where: str) -> bytes:
    """The row as one line of JSON, without a line break. Dates and the like become text.

    Args:
        row: a row.
        where: it stands, for messages.

    Raises:
        CpiftError: a text holds half a character.
    """
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise CpiftError(f"{where}: holds half a character (a lone surrogate), which no text file can") from error


def check_row(row: object, where: str) -> Row:
    """The row, if it can be trained on.

    Args:
        row: as messages, or as prompt and completion.
        where: it stands, for messages.

    Raises:
        CpiftError: what it lacks.
    """
    if not isinstance(row, dict):
        raise CpiftError(f"{where}: a row is an object with messages, or with prompt and completion")
    if "messages" in row:
        _check_messages(row["messages"], where, last_is_assistant=True)
    elif "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str) != isinstance(completion, str):
            raise CpiftError(f"{where}: prompt and completion must both be text or both be messages")
        if isinstance(prompt, str):
            if not completion.strip():
                raise CpiftError(f"{where}: the completion is empty")
        else:
            _check_messages(prompt, where, last_is_assistant=False)
            _check_messages(completion, where, last_is_assistant=True)
    else:
        raise CpiftError(
            f"{where}: has neither messages nor prompt and completion, but {', '.join(map(str, row)) or 'nothing'}"
        )
    check_row_keys(row, where)
    return row


def _check_messages(messages: object, where: str, last_is_assistant: bool) -> None:
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and (isinstance(m.get("content"), str) or _calls(m))
        for m in messages
    ):
        raise CpiftError(f"{where}: messages must be a list of objects with role and content, both text")
    if last_is_assistant and not any(
        m["role"] == "assistant" and ((m.get("content") or "").strip() or _calls(m)) for m in messages
    ):
        raise CpiftError(f"{where}: has no assistant turn, so there is nothing to learn")


def _calls(message: Row) -> bool:
    """Is it a call of tools? Then it needs no words."""
    return message.get("content") is None and bool(message.get("tool_calls"))
