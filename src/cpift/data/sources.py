"""Where rows come from: files, folders, hub sets; their columns renamed, their shape recognised and converted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cpift.data import dataset_info
from cpift.data.files import KINDS, Located, kind_of, missing, read_file, twin_of
from cpift.data.hub import read_set
from cpift.data.shapes import Row, recognise
from cpift.errors import CpiftError, did_you_mean
from cpift.files.manifest import file_hash
from cpift.recipe.task import Source, Task


@dataclass
class SourceFacts:
    """What is known of a source once its rows were read."""

    path: str
    shapes: Counter[str] = field(default_factory=Counter)
    """How many rows have each shape."""
    empty: int = 0
    """Rows with an empty response, which were left out."""
    num_samples: int | None = None
    """Rows that a ``dataset_info.json`` asks for; None: all."""


def source_rows(source: Source, facts: SourceFacts) -> Iterator[tuple[str, Row]]:
    """The rows of a source as messages or as prompt and completion, each with where it stands.

    Args:
        source: where they are.
        facts: counted while the rows are read.

    Raises:
        CpiftError: what is missing, damaged, or of no known shape, with file and line.
    """
    shape = source.shape
    prepare: dataset_info.Prepare = _same
    if dataset_info.is_entry(source.path):
        entry = dataset_info.entry(source.path)
        prepare, shape, facts.num_samples = entry.prepare, shape or entry.shape, entry.num_samples
        given = {"path": entry.path, "config": entry.config, "split": entry.split or source.split}
        source = source.model_copy(update=given)
    unseen, last = set(source.columns.values()), None
    for where, row in _located(source):
        if not isinstance(row, dict):
            raise CpiftError(f"{where}: a row is an object with messages, or with prompt and completion")
        unseen -= row.keys()
        try:
            renamed = _renamed(prepare(row), source.columns)
            recognised = recognise(renamed, shape)
            converted = recognised.convert(renamed)
        except ValueError as error:
            raise CpiftError(f"{where}: {_missing(unseen, row) or error}") from error
        if converted is None:
            facts.empty += 1
        else:
            facts.shapes[recognised.name] += 1
            last = row
            yield where, converted
    if last is None:
        raise CpiftError(f"{facts.path} holds no rows" + (" with a response" if facts.empty else ""))
    if unseen:
        raise CpiftError(f"{facts.path}: {_missing(unseen, last)}")


def _same(row: Any) -> Any:
    return row


def _located(source: Source) -> Iterator[Located]:
    kind = kind_of(source.path)
    if kind is not None and not os.path.isdir(source.path):
        asked = {"config": source.config, "revision": source.revision}
        if source.split not in (None, "train", "test"):  # these two are defaults
            asked["split"] = source.split
        for key, value in asked.items():
            if value is not None:
                raise CpiftError(f"{source.path}: is a file, which has no {key} ({value}); train_rows takes fewer rows")
        return read_file(Path(source.path), kind)
    if os.path.isfile(source.path):
        known = ", ".join(suffix for kind in KINDS for suffix in kind.suffixes)
        raise CpiftError(f"{source.path}: is a file of no known kind; known are {known}, and these with .gz or .zst")
    if not os.path.isdir(source.path) and twin_of(Path(source.path)):
        raise CpiftError(missing(Path(source.path)))
    return read_set(source.path, source.split or "train", source.config, source.revision)


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row with our names of its columns. A column may be named twice, such as the completion that is the answer."""
    if not columns:
        return row
    rest = {key: value for key, value in row.items() if key not in columns.values() and key not in columns}
    return {**{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}, **rest}


def _missing(unseen: set[str], row: Mapping[str, Any]) -> str:
    """What to report of columns that the recipe names, and that no row so far has had; empty where there are none."""
    if not unseen:
        return ""
    missing = min(unseen)
    hint = did_you_mean(missing, map(str, row))
    return f"has no column {missing!r}, which columns: names, but {', '.join(map(str, row))}{hint}"


def file_settings(task: Task) -> dict[str, Any]:
    """What stands for local files in the settings of a task's stage: their content, wherever they lie.

    Args:
        task: a task whose rows are not generated.

    Returns:
        For ``train`` and ``eval``, where they name files, what takes their place.

    Raises:
        CpiftError: a ``dataset_info.json`` has no set of that name.
    """
    settings: dict[str, Any] = {}
    for part in ("train", "eval"):
        value = getattr(task, part)
        if isinstance(value, str):
            settings[part] = _content(value)
        elif isinstance(value, list):
            settings[part] = [{**source.model_dump(), "path": _content(source.path)} for source in value]
    return settings


def _content(path: str) -> Any:
    if dataset_info.is_entry(path) and "#" in path:
        entry, info = dataset_info.entry(path), path.partition("#")
        return {"file": file_hash(Path(info[0])), "name": info[2], "rows": _content(entry.path)}
    if os.path.isdir(path):
        return {"folder": _files(Path(path))}
    return {"file": file_hash(Path(path))} if os.path.isfile(path) else path


def _files(folder: Path) -> dict[str, str]:
    """Hash of each file in a folder by its path there; hidden files, and what ``datasets`` has cached, hold no rows."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: file_hash(path) for name, path in names.items() if not _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    cached = name.rpartition("/")[2]
    return any(part.startswith(".") for part in name.split("/")) or fnmatch(cached, "cache-*.arrow")
