"""A fine-tuned model kept as its update: Δ of each parameter in bf16, half the bytes of fp32 weights.

``updates.safetensors`` (format ``cpift.updates/1``) holds Δ = θ − θ⁰ under the base's names. Δ in bf16 keeps eight bits of
each update; θ in bf16 would lose most of it. It is read as θ⁰ + Δ in float32, block by block.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cpift.checkpoint.align import align
from cpift.checkpoint.convert import converted
from cpift.checkpoint.files import read_json
from cpift.checkpoint.merged import read_wide, wide_dtype
from cpift.checkpoint.safetensors import StoredTensor, read_header_and_metadata
from cpift.checkpoint.stream import Checkpoint, blocks_of
from cpift.checkpoint.tensor import Tensor
from cpift.checkpoint.writer import Shard
from cpift.errors import CpiftError

FILE = "updates.safetensors"
FORMAT = "cpift.updates/1"


def is_updates(folder: Path) -> bool:
    """Does a folder hold updates in place of weights?"""
    return (folder / FILE).is_file()


def write_updates(
    base: Checkpoint, tuned: Checkpoint, folder: Path, progress: Callable[[int], None] = lambda nbytes: None
) -> None:
    """Write the updates of all parameters.

    Args:
        base: θ⁰.
        tuned: θ, of the same parameters.
        folder: to write to.
        progress: called with the number of bytes read since the last call.

    Raises:
        CpiftError: the two do not have the same parameters, or an update is too large for bf16.
    """
    tuned = align(base, tuned)
    layout = {name: ("BF16", tensor.shape) for name, tensor in base.tensors.items()}
    shapes = {name: list(tensor.shape) for name, tensor in base.tensors.items()}
    shard = Shard(folder / FILE, layout, {"format": FORMAT, "base": json.dumps(shapes)})
    shard.open()
    for name, own in base.tensors.items():
        for _, start, stop in blocks_of(base, name):
            update = read_wide(tuned.tensors[name], start, stop) - read_wide(own, start, stop)
            shard.write(name, start, np.ascontiguousarray(converted(update.astype(np.float32), "F32", "BF16", name)))
            progress((stop - start) * (own.itemsize + tuned.tensors[name].itemsize))
    shard.close()


def open_updates(folder: Path, base: Checkpoint) -> Checkpoint:
    """The model that a base and its updates make, in float32, computed as it is read.

    Args:
        folder: that :func:`write_updates` wrote to.
        base: what the updates were made from.

    Returns:
        A checkpoint whose path is ``folder``. It has the names, the buffers and the tied pairs of the base.

    Raises:
        CpiftError: a damaged file, or updates of another base.
    """
    file = folder / FILE
    stored, metadata = read_header_and_metadata(file)
    if metadata.get("format") != FORMAT:
        raise CpiftError(f"{file}: is of format {metadata.get('format')!r}, not {FORMAT}")
    tensors: dict[str, Tensor] = {}
    for name, own in base.tensors.items():
        update = stored.get(name)
        if update is None or update.shape != own.shape:
            shape = None if update is None else list(update.shape)
            raise CpiftError(
                f"{file}: was made from another base ({name} is {shape} there, {list(own.shape)} in {base.path}); give that one"
            )
        tensors[name] = _Updated(wide_dtype(own), own.shape, own, update)
    others = {**base.others, **{second: tensors[first] for second, first in base.aliases.items()}}
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else base.config
    return Checkpoint(folder, tensors, others, config, base.aliases, base)


@dataclass(frozen=True)
class _Updated(Tensor):
    """A tensor of the base with its update added, rounded once to float32."""

    base: Tensor
    update: StoredTensor

    @property
    def files(self) -> frozenset[Path]:
        return self.base.files | self.update.files

    def read(self, start: int, stop: int, ahead: bool = False) -> np.ndarray:
        total: np.ndarray = read_wide(self.base, start, stop, ahead) + read_wide(self.update, start, stop, ahead)
        total.flags.writeable = False
        return total

    def first_rows(self, shape: tuple[int, ...]) -> _Updated:
        return replace(self, shape=shape, base=self.base.first_rows(shape), update=self.update.first_rows(shape))
