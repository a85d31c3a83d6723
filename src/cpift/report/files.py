"""Reading what a run wrote, some of which may not be there yet."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cpift.errors import CpiftError

Event = Mapping[str, object]
"""A line of ``log.jsonl``."""


def read_json(path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """A JSON file that must be there, and be a table.

    Args:
        path: the file.
        keys: that it must have.

    Raises:
        CpiftError: it cannot be read, or lacks a key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CpiftError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CpiftError(f"{path}: is damaged ({' '.join(str(error).split())[:120]}); run again to write it") from error
    missing = sorted(set(keys) - set(content)) if isinstance(content, dict) else ["a table"]
    if missing:
        raise CpiftError(f"{path}: is damaged, or of another version ({missing[0]} is missing); run again to write it")
    table: dict[str, Any] = content
    return table


def maybe_json(path: Path, keys: Collection[str] = ()) -> dict[str, Any] | None:
    """As :func:`read_json`; None where the file is not there (yet)."""
    return read_json(path, keys) if path.is_file() else None


def json_lines(path: Path) -> list[Event]:
    """Events of ``log.jsonl``; a line that was cut off is left out."""
    if not path.is_file():
        return []
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
