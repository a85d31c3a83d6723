"""A checkpoint as a stream of blocks: nothing here holds a whole tensor, let alone a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from cpift.checkpoint.tensor import Tensor, widen
from cpift.errors import CpiftError

# A checksum covers BLOCK elements, whatever the size of the chunks that a caller reads in.
BLOCK = 2**20


class Block(NamedTuple):
    """Elements ``start`` to ``stop`` (row-major) of the parameter ``name``; at most ``BLOCK`` of them."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: parameters by name in plain string order, and what else the files hold.

    path: the folder or file that was opened.
    tensors: the parameters (floating point, a tied pair once).
    others: buffers and the second name of a tied pair, kept so that they can be copied.
    config: what ``config.json`` holds.
    aliases: the second name of a tied pair to its first name.
    beneath: of an adapter, the checkpoint that it was applied to.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
    config: dict[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)
    beneath: Checkpoint | None = None

    @property
    def total(self) -> int:
        """Number of elements of all parameters (D of the paper)."""
        return sum(t.size for t in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as they are read."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def files(self) -> list[Path]:
        """The files that hold the parameters, sorted."""
        return sorted({file for tensor in self.tensors.values() for file in tensor.files})

    @property
    def resized(self) -> dict[str, Any]:
        """Keys of the configuration that an adapter changes: the number of tokens, where it brings embeddings of its own."""
        beneath = self.config if self.beneath is None else self.beneath.config
        return {key: value for key, value in self.config.items() if beneath.get(key) != value}

    @property
    def folders(self) -> list[Path]:
        """The folders with configuration, tokenizer and the like; a file of a later one replaces an earlier one's."""
        own = self.path if self.path.is_dir() else self.path.parent
        return [own] if self.beneath is None else [*self.beneath.folders, own]

    def raw(self, name: str, start: int = 0, stop: int | None = None, ahead: bool = False) -> np.ndarray:
        """Elements of a tensor as stored; bf16 comes as uint16.

        Args:
            name: of a parameter, or of another tensor.
            start: the first element, row-major.
            stop: one behind the last; by default the tensor's end.
            ahead: map the pages in at once, where all of them will be read.
        """
        tensor = self.tensors.get(name) or self.others[name]
        return tensor.read(start, tensor.size if stop is None else stop, ahead)

    def hasher(self) -> Fingerprint:
        """A fingerprint to be fed with the checksums of this checkpoint's blocks, in order."""
        return Fingerprint(self)


def native(raw: np.ndarray) -> np.ndarray:
    """Stored elements in a type that the kernels know, read-only as all else: numba has no float16."""
    raw = raw.astype(np.float32) if raw.dtype == np.float16 else raw
    raw.flags.writeable = False  # another kind of array would be compiled for anew
    return raw


class Fingerprint:
    """A fast hash of names, shapes, dtypes and block checksums; not of paths, shards or other files.

    Equal for a checkpoint in one file or in many, and whether or not a tied pair is stored twice.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._hash = xxhash.xxh3_128()
        for name, t in checkpoint.tensors.items():
            self._hash.update(json.dumps([name, t.dtype, list(t.shape)]).encode())

    def add(self, block_checksum: bytes) -> None:
        """Add the xxh3 digest of the next block's stored bytes."""
        self._hash.update(block_checksum)

    def hexdigest(self) -> str:
        """The fingerprint: 32 hex digits."""
        return self._hash.hexdigest()


def fingerprint(checkpoint: Checkpoint) -> str:
    """Read the checkpoint once and return its fingerprint (32 hex digits)."""
    result = checkpoint.hasher()
    for name, start, stop in blocks(checkpoint):
        result.add(xxhash.xxh3_64_digest(checkpoint.raw(name, start, stop).data))
    return result.hexdigest()


def check_finite(checkpoint: Checkpoint) -> None:
    """Read the checkpoint once. Raises :class:`CpiftError` that names a tensor with NaN or infinite weights."""
    scratch = np.empty(BLOCK, np.float32)
    for block in blocks(checkpoint):
        if not np.isfinite(widen(checkpoint.raw(*block), checkpoint.tensors[block.name].dtype, scratch)).all():
            raise CpiftError(f"{checkpoint.path}: {block.name} holds NaN or infinite weights; training diverged")


def blocks(checkpoint: Checkpoint) -> Iterator[Block]:
    """All parameters in the order of flat positions: by name (plain string order), row-major within a tensor."""
    for name in checkpoint.tensors:
        yield from blocks_of(checkpoint, name)


def blocks_of(checkpoint: Checkpoint, name: str) -> Iterator[Block]:
    """One parameter, row-major."""
    size = checkpoint.tensors[name].size
    for start in range(0, size, BLOCK):
        yield Block(name, start, min(start + BLOCK, size))
