"""Stages on disk: a stage's folder is complete, with a ``stage.json`` that lists its inputs, or it is absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import xxhash

from cpift.errors import CpiftError
from cpift.files import layout
from cpift.files.atomic import sync
from cpift.files.records import Facts

FILE = layout.STAGE_FILE


@dataclass(frozen=True)
class Made:
    """What ``stage.json`` of a finished stage says."""

    key: str
    settings: dict[str, Any]
    needs: dict[str, str]
    outputs: dict[str, str]
    facts: Facts

    @property
    def digest(self) -> str:
        """Stands for the content of the whole folder."""
        return hashlib.sha256(json.dumps(self.outputs, sort_keys=True).encode()).hexdigest()[:32]


def key_of(settings: Mapping[str, object], needs: Mapping[str, str]) -> str:
    """Hash of a stage's settings and of its inputs' digests; equal keys stand for equal results."""
    return hashlib.sha256(json.dumps([settings, needs], sort_keys=True).encode()).hexdigest()[:32]


def read(folder: Path) -> Made | None:
    """The stage in this folder; None where it is not there, or its ``stage.json`` cannot be read."""
    try:
        return parse((folder / FILE).read_bytes())
    except OSError:
        return None


def parse(text: bytes) -> Made | None:
    """What a ``stage.json`` says; None where it is damaged."""
    try:
        data = json.loads(text)
        return Made(**{name: data[name] for name in Made.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        return None


def verify(folder: Path, made: Made) -> None:
    """Raise :class:`CpiftError` where a file of the stage is gone or is not what was written."""
    for name, expected in made.outputs.items():
        file = folder / name
        if not file.is_file() or file_hash(file) != expected:
            what = "was changed or damaged" if file.is_file() else "is gone"
            raise CpiftError(f"{file}: {what} after the stage was finished; remove {folder} and run again to redo it")


def verify_stage(folder: Path) -> None:
    """Check a stage's files against its own ``stage.json``; raise :class:`CpiftError` where that is missing or damaged."""
    made = read(folder)
    if made is None:
        raise CpiftError(f"{folder}: this stage is needed, but is not there; run again to make it")
    verify(folder, made)


def partial_of(folder: Path) -> Path:
    """Where the stage is while it is being made."""
    return folder.with_name(f".{folder.name}.partial")


def begin(folder: Path, key: str) -> Path:
    """An empty place to make the stage in; what an earlier call with the same key left there is kept."""
    partial = partial_of(folder)
    marker = partial / ".key"
    if partial.exists() and (not marker.is_file() or marker.read_text() != key):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    marker.write_text(key)
    return partial


def finish(
    folder: Path, key: str, settings: Mapping[str, object], needs: Mapping[str, str], facts: Mapping[str, object]
) -> Made:
    """Hash and sync what was made, write ``stage.json``, and rename the folder to its place."""
    partial = partial_of(folder)
    shutil.rmtree(partial / layout.WORK_FOLDER, ignore_errors=True)
    (partial / ".key").unlink(missing_ok=True)
    outputs = {}
    for file in sorted(p for p in partial.rglob("*") if p.is_file() and p.name != FILE):
        outputs[str(file.relative_to(partial))] = file_hash(file)
        sync(file)
    made = Made(key, dict(settings), dict(needs), outputs, cast(Facts, dict(facts)))
    (partial / FILE).write_text(json.dumps(vars(made), indent=1) + "\n", encoding="utf-8")
    sync(partial / FILE)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # of a call that was cut off just here
    if folder.exists():  # what is there was made of something else
        folder.replace(old)
    partial.replace(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    return made


def adopt(folder: Path, key: str, places: Iterable[Path]) -> bool:
    """Take a stage over from one of ``places`` that made the same, by hard links where the file system has them."""
    for place in places:
        made = read(place)
        if made is None or made.key != key or not all((place / name).is_file() for name in made.outputs):
            continue
        partial = partial_of(folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(place, partial, copy_function=_link)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        sync(folder.parent)
        return True
    return False


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def disk_of(folder: Path) -> int:
    """Bytes of what a stage leaves: all but the folder's own marker and what it worked with."""
    files = (
        p
        for p in folder.rglob("*")
        if p.is_file() and p.relative_to(folder).parts[0] not in (layout.WORK_FOLDER, ".key")
    )
    return sum(p.stat().st_size for p in files)


def write_whole(path: Path, text: str) -> None:
    """Write a small file; it appears whole or stays as it was."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """xxh3 of a file's bytes."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(2**22):
            state.update(piece)
    return state.hexdigest()


def differences(made: Made, settings: Mapping[str, object], needs: Mapping[str, str]) -> list[str]:
    """Why a stage is stale: each setting and each input that differs from when it was made."""
    found = [f"{name} changed" for name in _changed(made.settings, settings)]
    for name in sorted({*made.needs, *needs}):
        if name not in needs:
            found.append(f"{name} is no longer needed")
        elif name not in made.needs:
            found.append(f"{name} is needed now")
        elif made.needs[name] != needs[name]:
            found.append(f"{name} was made anew")
    return found


def _changed(old: object, new: object, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        inner = [_changed(old.get(k), new.get(k), f"{where}.{k}" if where else k) for k in sorted({*old, *new})]
        return [name for names in inner for name in names]
    return [] if old == new else [where]
