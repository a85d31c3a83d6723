"""Coefficients of a tensor, from the Gram matrix of θ⁰ and of all updates over its free entries (paper section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from cpift.checkpoint.stream import Block, native
from cpift.errors import CpiftError
from cpift.kernels.lazy import compiled
from cpift.method.fusion.inputs import Inputs
from cpift.method.fusion.options import FusionOptions
from cpift.method.interpolations import Combination, combination
from cpift.method.transplant import Cores

_add_gram = compiled("add_gram")


class BlockGram(NamedTuple):
    """Of one block of the tensor ``name``.

    Attributes:
        gram: its part of the Gram matrix, float64 (N + 2, N + 2).
        free: number of its free entries.
        checksums: xxh3 digests of the stored elements, for each different model.
    """

    name: str
    gram: np.ndarray
    free: int
    checksums: list[bytes]


@dataclass
class TensorGram:
    """The same of a tensor, added up block by block, in order.

    Attributes:
        gram: float64 (N + 2, N + 2).
        checksums: of its blocks, 8 bytes each, for each different model.
        left: number of blocks still to come.
        free: number of free entries.
    """

    gram: np.ndarray
    checksums: list[bytes]
    left: int
    free: int = 0

    @classmethod
    def empty(cls, models: int, distinct: int, blocks: int) -> TensorGram:
        """Before the first block of ``blocks``."""
        return cls(np.zeros((models, models)), [b""] * distinct, blocks)

    def add(self, block: BlockGram) -> None:
        """Add the next block's part.

        Raises:
            CpiftError: a value of the block is no number.
        """
        if not np.isfinite(block.gram).all():
            raise CpiftError(f"{block.name}: NaN or infinite weights in one of the checkpoints; training diverged")
        self.gram += block.gram
        self.free += block.free
        self.checksums = [kept + new for kept, new in zip(self.checksums, block.checksums, strict=True)]
        self.left -= 1


def addresses(stored: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Addresses and element sizes, as the kernels take them; the caller keeps the arrays alive."""
    return np.array([s.ctypes.data for s in stored]), np.array([s.itemsize for s in stored])


def block_gram(inputs: Inputs, block: Block) -> BlockGram:
    """Inner products of θ⁰ and all updates over the block's free entries.

    Args:
        inputs: what is fused.
        block: a part of one tensor.
    """
    raw = [model.raw(*block, ahead=True) for model in inputs.distinct]
    checksums = [xxhash.xxh3_64_digest(stored.data) for stored in raw]
    ready = [native(stored) for stored in raw]
    stored = [ready[i] for i in inputs.places]
    if inputs.backbone is inputs.base:  # its update is zero: no need to look at it again
        del stored[1]
    total = np.zeros((len(stored), len(stored)))
    cores = Cores(inputs.regions, inputs.tasks, block)
    size = block.stop - block.start
    core = _add_gram(*addresses(stored), size, *cores.table, cores.start, total)
    gram = np.tril(total) + np.tril(total, -1).T
    if inputs.backbone is inputs.base:
        gram = np.insert(np.insert(gram, 1, 0.0, axis=0), 1, 0.0, axis=1)
    return BlockGram(block.name, gram, size - core, checksums)


def interpolated(gram: np.ndarray, free: int, options: FusionOptions) -> Combination:
    """Coefficients of a vector.

    Args:
        gram: float64 (N + 2, N + 2), see :class:`cpift.method.interpolations.vectors.Vectors`.
        free: number of entries outside the core regions.
        options: interpolation, space and weight.
    """
    return combination(gram, free, options.interpolation, options.space, options.weight)


def update_angles(gram: np.ndarray) -> list[list[float | None]]:
    """Angle of the updates of backbone and tasks, pair by pair, in radians; None where one is zero."""
    norms = np.sqrt(np.diag(gram))[1:]
    result: list[list[float | None]] = []
    for i, a in enumerate(norms):
        row = [np.arccos(np.clip(gram[1 + i, 1 + j] / (a * b), -1, 1)) if a * b else None for j, b in enumerate(norms)]
        result.append([None if value is None else float(value) for value in row])
    return result
