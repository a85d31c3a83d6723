"""Write a Hugging Face checkpoint piece by piece, so that it can be cut off at any moment and continued.

All is written to a folder ``.NAME.partial`` beside the place; a shard gets its name when it is whole, and the folder is
renamed when all is there. What stands at the place itself is therefore always a whole checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cpift.checkpoint.files import INDEX, SINGLE
from cpift.checkpoint.safetensors import header_bytes
from cpift.checkpoint.tensor import itemsize
from cpift.errors import CpiftError
from cpift.files.atomic import sync

PROGRESS = "progress.json"  # what a call that resumes needs to know; no part of the finished folder
Layout = Mapping[str, tuple[str, tuple[int, ...]]]  # name to dtype and shape
# What a checkpoint folder holds beside weights: configuration, generation settings, tokenizer, chat template.
_COMPANIONS = (
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "chat_templates/*",
    "additional_chat_templates/*",
)
PATCHES = "patches.json"  # what a model carries, see cpift.method.apply_patch; true of its own weights alone
_NOT_COMPANIONS = {
    INDEX,
    PATCHES,
    "fusion.json",
    "stage.json",
    "trainer_state.json",
    "adapter_config.json",
    "zero_to_fp32.py",
}
_TORCH_NAME = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


def parse_size(size: str | int) -> int:
    """Bytes of "5GB", "200MB", "1.5GiB" or a plain number. Raises :class:`CpiftError` for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(size), re.IGNORECASE)
    unit = (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " ") if match else 0
    if not match or float(match[1]) * unit < 1:
        raise CpiftError(f"{size!r} is not a size; write it like 5GB or 200MB")
    return int(float(match[1]) * unit)


class Shard:
    """One file of the output, of known size; its tensors can be written in any order, by several threads."""

    def __init__(self, path: Path, layout: Layout, metadata: Mapping[str, str] | None = None) -> None:
        self.path, self.names = path, list(layout)
        self._head, self._begins = header_bytes(layout, metadata or {"format": "pt"})
        self._itemsize = {name: itemsize(dtype) for name, (dtype, _) in layout.items()}
        self._partial = path.with_name(f".{path.name}.partial")
        self._file: int | None = None

    def open(self) -> None:
        """Begin the file anew, under a name of its own."""
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(self._file, self._head, 0)

    def write(self, name: str, start: int, data: memoryview | np.ndarray) -> None:
        """Write elements of ``name`` from ``start`` on (row-major)."""
        assert self._file is not None
        view, offset = (
            (data if isinstance(data, memoryview) else data.data).cast("B"),
            self._begins[name] + start * self._itemsize[name],
        )
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def close(self) -> None:
        """Give the file its name, now that it is whole and on disk."""
        assert self._file is not None
        os.fsync(self._file)
        os.close(self._file)
        self._partial.replace(self.path)


class CheckpointWriter:
    """An output folder that is not whole yet. ``key`` decides whether what an earlier call left can be continued."""

    def __init__(self, out: Path, layout: Layout, max_shard_size: int, key: str) -> None:
        self.out, self._key = out, key
        self.finished = self._is_finished()
        self._shards = split_layout(layout, max_shard_size)
        self._partial = out.with_name(f".{out.name}.partial")
        if self.finished:
            return
        if self.load(PROGRESS) is None:
            shutil.rmtree(self._partial, ignore_errors=True)
        check_room(out, layout_bytes(layout))
        self._partial.mkdir(parents=True, exist_ok=True)

    def _is_finished(self) -> bool:
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return False
        try:
            same = json.loads((self.out / "fusion.json").read_text())["key"] == self._key
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise CpiftError(f"{self.out}: exists and holds something else; choose another folder, or remove it")
        return True

    def discard(self) -> None:
        """Remove what was written so far: it cannot become a checkpoint."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def load(self, name: str) -> Any:
        """What an earlier call with the same key stored under ``name``, or None."""
        try:
            kept = json.loads((self._partial / name).read_text())
        except (OSError, ValueError):
            return None
        return kept["value"] if isinstance(kept, dict) and kept.get("key") == self._key else None

    def store(self, name: str, value: object) -> None:
        """Keep a JSON value for a later call."""
        scratch = self._partial / f".{name}.partial"
        scratch.write_text(json.dumps({"key": self._key, "value": value}))
        scratch.replace(self._partial / name)

    def missing_shards(self) -> Iterator[Shard]:
        """The shards that are still to be written, none of them open."""
        for file, layout in self._shards.items():
            shard = Shard(self._partial / file, layout)
            if not shard.path.exists():
                yield shard

    def finish(self, report: Mapping[str, object], companions: Callable[[Path], None], kinds: set[str]) -> None:
        """Add index, configuration and tokenizer, and rename the folder.

        Args:
            report: goes into ``fusion.json``.
            companions: writes what lies beside the weights into a folder.
            kinds: types of the parameters, as safetensors calls them.
        """
        companions(self._partial)
        set_dtype(self._partial / "config.json", kinds)
        if len(self._shards) > 1:
            weight_map = {name: file for file, layout in self._shards.items() for name in layout}
            total = sum(_nbytes(entry) for layout in self._shards.values() for entry in layout.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (self._partial / INDEX).write_text(json.dumps(index, indent=2))
        (self._partial / "fusion.json").write_text(json.dumps({**report, "key": self._key}))
        (self._partial / PROGRESS).unlink(missing_ok=True)
        if self.out.exists():
            self.out.rmdir()  # known to be empty
        self._partial.replace(self.out)
        sync(self.out.absolute().parent)  # a rename lasts once its folder is synced


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that gets its name ``out`` at the end of the block, and is removed where the block raises.

    Raises :class:`CpiftError` where ``out`` exists and is not empty.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CpiftError(f"{out}: exists and holds something else; choose another folder, or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()  # known to be empty
        partial.replace(out)
        sync(out.absolute().parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def layout_bytes(layout: Layout) -> int:
    """Bytes of all tensors."""
    return sum(_nbytes(entry) for entry in layout.values())


def _nbytes(entry: tuple[str, tuple[int, ...]]) -> int:
    return math.prod(entry[1]) * itemsize(entry[0])


def split_layout(layout: Layout, limit: int) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """File name to its tensors: names in order, a new file where the next would grow over ``limit`` bytes."""
    parts: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    filled = 0
    for name in sorted(layout):
        if parts[-1] and filled + _nbytes(layout[name]) > limit:
            parts.append({})
            filled = 0
        parts[-1][name] = layout[name]
        filled += _nbytes(layout[name])
    # Within a file the wider types come first, so that every tensor lies at a multiple of its element size.
    parts = [dict(sorted(part.items(), key=lambda item: (-itemsize(item[1][0]), item[0]))) for part in parts]
    if len(parts) == 1:
        return {SINGLE: parts[0]}
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, start=1)}


def check_room(out: Path, needed: int) -> None:
    """Raise :class:`CpiftError` where the disk has less room than ``needed`` bytes."""
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed * 1.01:
        raise CpiftError(f"{out}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; make room first")


def copy_companions(source: Path, target: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Copy what goes along with the weights.

    Args:
        source: folder of a checkpoint.
        target: folder of another.
        wanted: by its path within the folder, is a file copied?

    Raises:
        CpiftError: a link that leads out of ``source``.
    """
    check_companions(source)
    for file in _companions(source):
        if file.is_file() and wanted(file.relative_to(source).as_posix()):
            place = target / file.relative_to(source)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)


def check_companions(*folders: Path) -> None:
    """Raise :class:`CpiftError` for a file to be copied that is a link to somewhere else."""
    for folder in folders:
        for file in _companions(folder):
            _check_link(file, folder)


def _companions(folder: Path) -> list[Path]:
    """What goes along with the weights, links that lead nowhere included."""
    files = [file for pattern in _COMPANIONS for file in sorted(folder.glob(pattern))]
    if _has_code(folder):
        files += sorted(folder.glob("*.py"))
    return [file for file in files if file.name not in _NOT_COMPANIONS]


def _has_code(folder: Path) -> bool:
    """Does the configuration name code that lies in the folder, without which no one can load it?"""
    try:
        return "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _check_link(file: Path, folder: Path) -> None:
    """A stranger's link must not carry a private file into a checkpoint that is then given away."""
    real, home = file.resolve(), folder.resolve()
    if home in real.parents:
        return
    blobs = home.parent.parent / "blobs"  # the hub's cache keeps its files there, and links to them
    if home.parent.name != "snapshots" or real.parent != blobs:
        raise CpiftError(f"{file}: is a link that leads out of the folder; put the file itself there")


def set_dtype(config_file: Path, kinds: set[str]) -> None:
    """Let the configuration say the dtype of the weights, as safetensors writes it, where they have but one."""
    if config_file.is_file() and len(kinds) == 1:
        config = json.loads(config_file.read_text())
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = _TORCH_NAME[next(iter(kinds))]
        config_file.write_text(json.dumps(config, indent=2) + "\n")


def set_vocabulary(config_file: Path, rows: int) -> None:
    """Let the configuration say how many rows the embedding has."""
    if config_file.is_file():
        config = json.loads(config_file.read_text())
        for part in (config, config.get("text_config")):
            if isinstance(part, dict) and "vocab_size" in part:
                part["vocab_size"] = rows
        config_file.write_text(json.dumps(config, indent=2) + "\n")
