"""One set of LLaMA-Factory's ``dataset_info.json``, as ``path/to/dataset_info.json#name``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpift.errors import CpiftError, nearest

Prepare = Callable[[Any], Any]

_TAKEN = {
    "file_name",
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "formatting",
    "subset",
    "split",
    "columns",
    "tags",
    "num_samples",
}
_EMPTY = {"ranking": False, "folder": None, "script_url": None, "cloud_file_name": None}
# Their name of a column, its default, and ours.
_ALPACA = {
    "prompt": ("instruction", "instruction"),
    "query": ("input", "input"),
    "response": ("output", "output"),
    "history": (None, "history"),
    "system": (None, "system"),
}
_SHAREGPT = {
    "messages": ("conversations", "conversations"),
    "system": (None, "system"),
    "tools": (None, "tools"),
}
_ROLES = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function_call"),
    "system_tag": ("system", "system"),
}


@dataclass(frozen=True)
class Entry:
    """A set of the file."""

    path: str
    """A file or folder beside the file, or a hub id."""
    config: str | None
    split: str | None
    shape: str
    num_samples: int | None
    """Rows to draw; None: all."""
    prepare: Prepare
    """Gives a row the column names, and its turns the roles, that are known here."""


def is_entry(path: str) -> bool:
    """Does a path name a set of a ``dataset_info.json``?"""
    return Path(path.partition("#")[0]).name == "dataset_info.json"


def entry(path: str) -> Entry:
    """The set that ``path/to/dataset_info.json#name`` names.

    Args:
        path: file and name.

    Raises:
        CpiftError: no such file or set, or a set that cannot be trained on here.
    """
    file, _, name = path.partition("#")
    try:
        sets = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CpiftError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(sets, dict) or not isinstance(sets.get(name), dict):
        names = list(sets) if isinstance(sets, dict) else []
        near = nearest(name, names)
        hint = f"did you mean {near!r}?" if near else f"it has {', '.join(names[:20]) or 'none'}"
        raise CpiftError(f"{file}: has no set {name!r}, to be named after a #; {hint}")
    return _entry(f"{file}#{name}", Path(file).parent, sets[name])


def _entry(where: str, folder: Path, given: Mapping[str, Any]) -> Entry:
    for key, value in given.items():
        if key not in _TAKEN and not (key in _EMPTY and value == _EMPTY[key]):
            what = "a preference set, which is not for supervised fine-tuning" if key == "ranking" else "not supported"
            raise CpiftError(f"{where}: {key}: {value!r} is {what}")
    form = given.get("formatting", "alpaca")
    if form not in ("alpaca", "sharegpt", "openai"):
        raise CpiftError(f"{where}: formatting {form!r} is none of alpaca, sharegpt, openai")
    names = _ALPACA if form == "alpaca" else _SHAREGPT
    columns, tags = given.get("columns") or {}, given.get("tags") or {}
    unknown = [key for key in columns if key not in names] + [
        key for key in tags if key not in _ROLES and key not in ("role_tag", "content_tag")
    ]
    if unknown:
        raise CpiftError(f"{where}: {unknown[0]} is not supported with formatting {form}; only text can be trained on")
    samples = given.get("num_samples")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise CpiftError(f"{where}: num_samples is {samples!r}; it is a number of rows, at least 1")
    hub = given.get("hf_hub_url")
    if not hub and "file_name" not in given:
        raise CpiftError(f"{where}: has neither file_name nor hf_hub_url")
    source = str(folder / given["file_name"]) if "file_name" in given and not hub else str(hub)
    theirs = {ours: columns.get(key, default) for key, (default, ours) in names.items()}
    if form == "openai":
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "observation_tag": "tool",
            **tags,
        }
    return Entry(
        os.path.abspath(source) if not hub else source,
        given.get("subset"),
        given.get("split"),
        "alpaca" if form == "alpaca" else "sharegpt",
        samples,
        lambda row: _renamed(row, theirs, tags if form != "alpaca" else None),
    )


def _renamed(row: Any, theirs: Mapping[str, str | None], tags: Mapping[str, str] | None) -> Any:
    if not isinstance(row, dict):
        return row
    used = set(theirs.values())
    made = {key: value for key, value in row.items() if key not in used and key not in theirs}
    made |= {ours: row[name] for ours, name in theirs.items() if name is not None and row.get(name) is not None}
    if tags is not None and isinstance(made.get("conversations"), list):
        role, content = tags.get("role_tag", "from"), tags.get("content_tag", "value")
        roles = {tags.get(tag, default): ours for tag, (default, ours) in _ROLES.items()}
        made["conversations"] = [_tagged(turn, role, content, roles) for turn in made["conversations"]]
    return made


def _tagged(turn: object, role: str, content: str, roles: Mapping[str, str]) -> Any:
    if not isinstance(turn, dict) or role not in turn:
        return turn
    if turn[role] not in roles:
        raise ValueError(f"a turn is of {turn[role]!r}; the tags of dataset_info.json know {', '.join(roles)}")
    rest = {key: value for key, value in turn.items() if key not in (role, content)}
    return {"role": roles[turn[role]], "content": turn.get(content), **rest}
