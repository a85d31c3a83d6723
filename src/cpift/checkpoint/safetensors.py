"""One safetensors file: read its header with every claim checked, write one without holding it in memory."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cpift.checkpoint.tensor import FLOATING, OTHER, Tensor, itemsize
from cpift.errors import CpiftError
from cpift.kernels.prefault import map_ahead

HEADER_LIMIT = 100_000_000  # as the safetensors library has it
DESCRIPTORS = 256  # open files; a process may have 1024, by default
_TABLES_LIMIT = 2_000_000  # lists and tables in a header; more would take gigabytes to hold
_NAME_OF = {np.dtype(np.int32): "I32", np.dtype(np.int64): "I64", np.dtype(np.float32): "F32"}


class MappedFile:
    """A file as one read-only array of bytes, mapped when first read; or as a descriptor to read from."""

    _open = 0  # files of all checkpoints

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def descriptor(self) -> int | None:
        """Of the open file, as long as this object lives; None without ``pread``, or beyond so many files that the system might run out."""
        if MappedFile._open >= DESCRIPTORS or not hasattr(os, "pread"):
            return None
        descriptor = os.open(self.path, os.O_RDONLY)
        MappedFile._open += 1
        weakref.finalize(self, _close, descriptor)
        return descriptor

    @cached_property
    def data(self) -> np.ndarray:
        """uint8, (bytes of the file,)."""
        return np.asarray(np.memmap(self.path, mode="r", dtype=np.uint8))


def _close(descriptor: int) -> None:
    os.close(descriptor)
    MappedFile._open -= 1


@dataclass(frozen=True)
class StoredTensor(Tensor):
    """Where a tensor lies: bytes ``begin:end`` of a file."""

    begin: int
    end: int
    file: Path
    mapped: MappedFile = field(repr=False, compare=False)

    @property
    def files(self) -> frozenset[Path]:
        """The one file."""
        return frozenset((self.file,))

    def read(self, start: int, stop: int, ahead: bool = False) -> np.ndarray:
        """A read-only view of the stored elements."""
        first = self.begin + start * self.itemsize
        stored = self.mapped.data[first : self.begin + stop * self.itemsize]
        if ahead:
            map_ahead(stored)
        return stored.view(self.numpy_dtype)

    def place(self, start: int) -> tuple[int, int] | None:
        """In its file."""
        descriptor = self.mapped.descriptor
        return None if descriptor is None else (descriptor, self.begin + start * self.itemsize)

    def first_rows(self, shape: tuple[int, ...]) -> StoredTensor:
        """A tensor's first rows are its first bytes."""
        return replace(self, shape=shape, end=self.begin + math.prod(shape) * self.itemsize)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name. Raises :class:`CpiftError` where the header is damaged or lies."""
    return read_header_and_metadata(path)[0]


def read_header_and_metadata(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """As :func:`read_header`, with the file's metadata."""
    if path.exists() and not path.is_file():  # a pipe or a device would keep us waiting
        raise CpiftError(f"{path}: is no file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise CpiftError(f"{path}: truncated or not safetensors (header of {length} bytes, file of {size})")
            text = file.read(length)
        if text.count(b"{") + text.count(b"[") > _TABLES_LIMIT:
            raise CpiftError(f"{path}: damaged header (too many tables)")
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise CpiftError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CpiftError(f"{path}: damaged header ({error})") from error
    if not isinstance(header, dict):
        raise CpiftError(f"{path}: damaged header (not a table)")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CpiftError(f"{path}: damaged header (metadata is not text)")
    mapped = MappedFile(path)
    tensors = {name: _tensor(mapped, name, entry, 8 + length, size) for name, entry in header.items()}
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            what = "overlaps another" if tensor.begin < position else "leaves a gap before it"
            raise CpiftError(f"{path}: damaged header (tensor {name} {what})")
        position = tensor.end
    if position != size:
        what = "truncated" if position > size else "has bytes that belong to no tensor"
        raise CpiftError(f"{path}: {what} ({size} bytes, the header speaks of {position})")
    return tensors, metadata


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"duplicate name {next(n for n in names if names.count(n) > 1)!r}")
    return result


def _tensor(mapped: MappedFile, name: str, entry: Any, data: int, size: int) -> StoredTensor:
    path = mapped.path
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise CpiftError(f"{path}: damaged header (tensor {name!r})")
    if dtype not in FLOATING and dtype not in OTHER:
        raise CpiftError(
            f"{path}: tensor {name} is of type {dtype}, which is not supported; use F32, BF16 or F16"
            + (" (take the unquantised checkpoint)" if dtype.startswith(("F8", "F6", "F4")) else "")
        )
    if end - begin != math.prod(shape) * itemsize(dtype):
        raise CpiftError(f"{path}: tensor {name} of shape {list(shape)} does not take {end - begin} bytes")
    if data + end > size:
        raise CpiftError(f"{path}: truncated (tensor {name} ends at byte {data + end}, the file at {size})")
    return StoredTensor(dtype, shape, data + begin, data + end, path, mapped)


def header_bytes(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The head of a file that holds ``tensors`` (name to dtype and shape) in this order, and each one's first byte."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset, begins = 0, {}
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * itemsize(dtype)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        begins[name], offset = offset, end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise CpiftError("the header of a safetensors file would be over 100 MB")
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + begin for name, begin in begins.items()}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write int32, int64 or float32 arrays in the order given; the file appears whole or not at all."""
    head, _ = header_bytes({n: (_NAME_OF[a.dtype], a.shape) for n, a in arrays.items()}, metadata)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(head)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
