"""A fine-tuned model as what differs from its base: one file, put back bit for bit (format ``cpift.delta/1``).

``delta.safetensors`` holds for each tensor that differs a little ``positions:NAME`` (sorted, row-major) and
``values:NAME``, in the model's type; for one that differs in most places, or that the base lacks, ``whole:NAME``. Its
metadata have the fingerprints of base and model, and each tensor's type, shape and kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cpift.checkpoint.align import match_tensors
from cpift.checkpoint.convert import converted
from cpift.checkpoint.files import read_json
from cpift.checkpoint.safetensors import StoredTensor, read_header_and_metadata
from cpift.checkpoint.stream import BLOCK, Checkpoint, fingerprint
from cpift.checkpoint.tensor import Tensor, itemsize
from cpift.checkpoint.writer import Shard, copy_companions, new_folder
from cpift.errors import CpiftError

FORMAT = "cpift.delta/1"
FILE = "delta.safetensors"
Kind = Literal["same", "sparse", "whole", "tied"]


@dataclass(frozen=True)
class DeltaReport:
    """What was written: elements of the model, elements that differ, and bytes of the file."""

    total: int
    changed: int
    nbytes: int


@dataclass(frozen=True)
class _Entry:
    """A tensor of the model. partner: the base's tensor it is compared with, or the first name of a tied pair."""

    dtype: str
    shape: tuple[int, ...]
    kind: Kind
    parameter: bool
    partner: str = ""


def write_delta(
    base: Checkpoint, model: Checkpoint, out: Path, progress: Callable[[int], None] = lambda nbytes: None
) -> DeltaReport:
    """Write what differs, with the model's configuration and tokenizer beside it.

    Args:
        base: what the model was made from.
        model: the model.
        out: a new folder, or an empty one.
        progress: called with the number of bytes read since the last call.

    Raises:
        CpiftError: the folder exists and is not empty.
    """
    entries, counts = _entries(base, model, progress)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, entry in entries.items():
        if entry.kind == "sparse":
            layout[f"positions:{name}"] = _position_type(entry), (counts[name],)
            layout[f"values:{name}"] = entry.dtype, (counts[name],)
        elif entry.kind == "whole":
            layout[f"whole:{name}"] = entry.dtype, entry.shape
    table = {n: [e.dtype, list(e.shape), e.kind, e.parameter, e.partner] for n, e in entries.items()}
    prints = {"format": FORMAT, "base": fingerprint(base), "model": fingerprint(model)}
    layout = dict(sorted(layout.items(), key=lambda item: -itemsize(item[1][0])))  # so that each lies at its multiple
    with new_folder(out) as folder:
        shard = Shard(folder / FILE, layout, {**prints, "tensors": json.dumps(table)})
        shard.open()
        for name, entry in entries.items():
            _write(shard, base, model, name, entry)
        shard.close()
        for source in model.folders:
            copy_companions(source, folder)
    return DeltaReport(model.total, sum(counts.values()), os.path.getsize(out / FILE))


def _write(shard: Shard, base: Checkpoint, model: Checkpoint, name: str, entry: _Entry) -> None:
    if entry.kind == "whole":
        for start, raw in _pieces(_tensor(model, name)):
            shard.write(f"whole:{name}", start, raw.data)
    elif entry.kind == "sparse":
        done = 0
        for positions, values in _differences(base, model, name, entry):
            kind = np.int32 if _position_type(entry) == "I32" else np.int64
            shard.write(f"positions:{name}", done, np.ascontiguousarray(positions, kind).data)
            shard.write(f"values:{name}", done, np.ascontiguousarray(values).data)
            done += len(positions)


def open_delta(base: Checkpoint, folder: Path) -> tuple[Checkpoint, str]:
    """The model that a delta makes of its base, read block by block, and the fingerprint that it must have.

    Args:
        base: what the delta was made from.
        folder: that :func:`write_delta` wrote.

    Raises:
        CpiftError: no delta, a damaged one, or one of another base.
    """
    file = folder / FILE
    if not file.is_file():
        raise CpiftError(f"{folder}: holds no {FILE}; cpift export --format delta writes one")
    stored, metadata = read_header_and_metadata(file)
    if metadata.get("format") != FORMAT:
        raise CpiftError(f"{file}: is of format {metadata.get('format')!r}, not {FORMAT}")
    own = fingerprint(base)
    if metadata.get("base") != own:
        raise CpiftError(
            f"{file}: was made from another base ({str(metadata.get('base'))[:12]}, {base.path} is {own[:12]}); give that one"
        )
    entries = _read_table(metadata.get("tensors", ""), file)
    tensors: dict[str, Tensor] = {}
    try:
        for name, entry in entries.items():
            if entry.kind == "whole":
                tensors[name] = stored[f"whole:{name}"]
            elif entry.kind != "tied":
                parts = (stored.get(f"positions:{name}"), stored.get(f"values:{name}"))
                tensors[name] = _patched(_tensor(base, entry.partner), entry, parts, f"{file}: {name}")
        for name, entry in entries.items():
            if entry.kind == "tied":
                tensors[name] = tensors[entry.partner]
    except KeyError as error:
        raise CpiftError(f"{file}: lacks the tensor {error}") from None
    parameters = {name: tensors[name] for name in sorted(entries) if entries[name].parameter}
    others = {name: tensors[name] for name in sorted(entries) if not entries[name].parameter}
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return Checkpoint(folder, parameters, others, config), metadata.get("model", "")


def _entries(
    base: Checkpoint, model: Checkpoint, progress: Callable[[int], None]
) -> tuple[dict[str, _Entry], dict[str, int]]:
    """Each tensor of the model, and how many elements of it differ."""
    partners = {**match_tensors(base, model), **{name: name for name in model.others if name in base.others}}
    entries: dict[str, _Entry] = {}
    counts: dict[str, int] = {}
    for name in (*model.tensors, *model.others):
        tensor, parameter = _tensor(model, name), name in model.tensors
        if name in model.aliases:
            entries[name] = _Entry(tensor.dtype, tensor.shape, "tied", False, model.aliases[name])
            continue
        entry = _Entry(tensor.dtype, tensor.shape, "whole", parameter)
        partner = partners.get(name)
        if partner is not None and _tensor(base, partner).shape == tensor.shape:
            entry = replace(entry, kind="sparse", partner=partner)
            counts[name] = sum(len(positions) for positions, _ in _differences(base, model, name, entry))
            width = tensor.itemsize + (4 if _position_type(entry) == "I32" else 8)
            if not counts[name]:
                entry = replace(entry, kind="same")
            elif counts[name] * width >= tensor.nbytes:
                entry = replace(entry, kind="whole", partner="")
        else:
            counts[name] = tensor.size
        entries[name] = entry
        progress(2 * tensor.nbytes)
    return entries, counts


def _differences(
    base: Checkpoint, model: Checkpoint, name: str, entry: _Entry
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions at which any bit differs from the base's value in the model's type, and the model's values there."""
    tensor, own = _tensor(model, name), _tensor(base, entry.partner)
    bits = np.dtype(f"u{tensor.itemsize}")
    for start, raw in _pieces(tensor):
        before = _in_type(own.read(start, start + len(raw)), own, entry, name)
        places = np.flatnonzero(before.view(bits) != raw.view(bits))
        yield places + start, raw[places]


def _in_type(raw: np.ndarray, tensor: Tensor, entry: _Entry, name: str) -> np.ndarray:
    if tensor.dtype == entry.dtype or not tensor.floating:
        return raw
    return converted(raw, tensor.dtype, entry.dtype, name)


def _pieces(tensor: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, tensor.size, BLOCK):
        yield start, tensor.read(start, min(start + BLOCK, tensor.size), ahead=True)


def _tensor(model: Checkpoint, name: str) -> Tensor:
    return model.tensors.get(name) or model.others[name]


def _position_type(entry: _Entry) -> str:
    return "I32" if int(np.prod(entry.shape, dtype=np.int64)) < 2**31 else "I64"


def _read_table(text: str, file: Path) -> dict[str, _Entry]:
    try:
        table: Mapping[str, tuple[str, list[int], Kind, bool, str]] = json.loads(text)
        return {n: _Entry(d, tuple(s), kind, bool(p), partner) for n, (d, s, kind, p, partner) in table.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CpiftError(f"{file}: damaged header (tensors: {error})") from None


def _patched(base: Tensor, entry: _Entry, parts: tuple[StoredTensor | None, StoredTensor | None], where: str) -> Tensor:
    positions, values = parts
    if base.shape != entry.shape:
        raise CpiftError(f"{where}: has shape {list(entry.shape)}, the base has {list(base.shape)}")
    if positions is None or values is None:
        return _Patched(entry.dtype, entry.shape, base, np.empty(0, np.int32), None)
    places = positions.read(0, positions.size)
    if values.dtype != entry.dtype or values.size != places.size or positions.dtype not in ("I32", "I64"):
        raise CpiftError(f"{where}: positions and values do not fit each other; the file is damaged")
    if places.size and (places[0] < 0 or places[-1] >= base.size or not (places[1:] > places[:-1]).all()):
        raise CpiftError(f"{where}: positions are not sorted, or lie beyond the tensor; the file is damaged")
    return _Patched(entry.dtype, entry.shape, base, places, values)


@dataclass(frozen=True, eq=False)
class _Patched(Tensor):
    """A tensor of the base in the model's type, other values at some positions."""

    base: Tensor
    positions: np.ndarray
    values: StoredTensor | None

    @property
    def files(self) -> frozenset[Path]:
        return self.base.files | (self.values.files if self.values else frozenset())

    def read(self, start: int, stop: int, ahead: bool = False) -> np.ndarray:
        raw = self.base.read(start, stop, ahead)
        if self.base.dtype != self.dtype and self.base.floating:
            raw = converted(raw, self.base.dtype, self.dtype, "delta")
        first, last = np.searchsorted(self.positions, (start, stop))
        if self.values is None or first == last:
            return raw
        patched = raw.copy()
        patched[self.positions[first:last] - start] = self.values.read(int(first), int(last))
        return patched

    def first_rows(self, shape: tuple[int, ...]) -> _Patched:
        return replace(self, shape=shape)
