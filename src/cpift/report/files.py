"""Reading what a run wrote, some of which may not be there yet."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cpift.errors import CpiftError


def read_json(path: Path, keys: Collection[str] = ()) -> Any:
    """A JSON file that must be there, and be a table with these keys. Raises :class:`CpiftError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CpiftError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CpiftError(f"{path}: is damaged ({' '.join(str(error).split())[:120]}); run again to write it") from error
    missing = sorted(set(keys) - set(found)) if isinstance(found, dict) else ["a table"]
    if missing:
        raise CpiftError(f"{path}: is damaged, or of another version ({missing[0]} is missing); run again to write it")
    return found


def maybe_json(path: Path, keys: Collection[str] = ()) -> Any:
    """A JSON file, or None where it is not there (yet)."""
    return read_json(path, keys) if path.is_file() else None


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Events of ``log.jsonl``; a line that was cut off is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found
