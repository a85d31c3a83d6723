"""Names in a row that would change what is learnt: those that are honoured, and those that are refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cpift.errors import CpiftError

# Columns that look like training content and are not read here; others are metadata and stay as they are.
REFUSED_COLUMNS: dict[str, str] = {
    **dict.fromkeys(
        ("image", "images", "video", "videos", "audio", "audios"), "only text is trained; remove it, or these rows"
    ),
    **dict.fromkeys(("system", "system_prompt", "history"), "give it as the first of the messages"),
    **dict.fromkeys(("functions", "function_call"), "give tools, and tool_calls in the messages"),
    "documents": "give them in the messages",
    "chat_template": "one template serves all rows; give it in the recipe",
    **dict.fromkeys(("weight", "loss_weight"), "rows cannot be weighted; use weight: 0 on a turn, or repeat rows"),
    **dict.fromkeys(
        ("input_ids", "labels", "completion_mask", "assistant_masks", "loss_mask"),
        "rows are tokenized here; give messages, or prompt and completion",
    ),
}
# What a message may have: templates read these.
MESSAGE_KEYS = frozenset(
    (
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "reasoning_content",
        "reasoning",
        "thinking",
        "weight",
        "train",
    )
)
# Metadata that data sets put into messages; no template reads them.
MESSAGE_METADATA = frozenset(
    (
        "id",
        "uuid",
        "index",
        "turn",
        "turn_identifier",
        "timestamp",
        "created_at",
        "date",
        "language",
        "model",
        "source",
        "score",
        "rating",
        "metadata",
        "state",
        "country",
        "hashed_ip",
        "header",
        "redacted",
        "toxic",
        "annotations",
    )
)


def check_row_keys(row: Mapping[str, Any], where: str) -> None:
    """See that nothing in a row changes the training without being honoured. Empty values do not count.

    Raises:
        CpiftError: a column or a message's key is not known, by its name; tools or variables of the wrong kind.
    """
    for column, remedy in REFUSED_COLUMNS.items():
        if not _empty(row.get(column)):
            raise CpiftError(f"{where}: {column} is not supported: {remedy}")
    chat = "messages" in row or not isinstance(row.get("prompt"), str)
    for column in ("tools", "chat_template_kwargs"):
        if not _empty(row.get(column)) and not chat:
            raise CpiftError(f"{where}: {column} needs messages: plain text has no chat template")
    if not _empty(row.get("tools")):
        _check_tools(row["tools"], where)
    kwargs = row.get("chat_template_kwargs")
    if not _empty(kwargs) and not isinstance(kwargs, dict):
        raise CpiftError(f"{where}: chat_template_kwargs must be an object of names and values")
    for name in ("messages", "prompt", "completion"):
        if isinstance(row.get(name), list) and not (name != "messages" and "messages" in row):
            for message in row[name]:
                if isinstance(message, dict):
                    _check_message(message, where)
    _check_some_turn_is_learnt(row, where)


def _check_tools(tools: object, where: str) -> None:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise CpiftError(f"{where}: tools is text, but not JSON ({error})") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise CpiftError(f"{where}: tools must be a list of objects, or that as JSON text")


def _check_message(message: Mapping[str, object], where: str) -> None:
    for key, value in message.items():
        if key not in MESSAGE_KEYS and key not in MESSAGE_METADATA and not _empty(value):
            raise CpiftError(
                f"{where}: a message has {key}, which is not known; known are {', '.join(sorted(MESSAGE_KEYS))}"
            )
    weight, train = message.get("weight"), message.get("train")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise CpiftError(f"{where}: weight is {weight!r}; a turn is learnt (1) or not (0)")
    if train is not None and not isinstance(train, bool):
        raise CpiftError(f"{where}: train is {train!r}; a turn is learnt (true) or not (false)")
    if message.get("role") != "assistant" and (train or weight):
        key = "train" if train else "weight"
        raise CpiftError(f"{where}: {key} asks to learn a turn of the {message.get('role')}; only the assistant's are")


def _check_some_turn_is_learnt(row: Mapping[str, object], where: str) -> None:
    turns = row["messages"] if "messages" in row else row.get("completion")
    if not isinstance(turns, list):
        return
    assistants = [m for m in turns if isinstance(m, dict) and m.get("role") == "assistant"]
    if assistants and all(m.get("weight") == 0 or m.get("train") is False for m in assistants):
        raise CpiftError(f"{where}: no assistant turn is learnt; each has weight 0 or train false")


def _empty(value: object) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)
