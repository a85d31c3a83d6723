"""Tensors of a base with an adapter merged in, computed as they are read: memory does not grow with the model.

All of them read as float32 (float64 where the base is), whatever the base is stored in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np

from cpift.checkpoint.tensor import FLOATING, Tensor, widen
from cpift.kernels.lazy import compiled

_add_low_rank = compiled("add_low_rank")

_TILE = 2**20  # elements in work at a time where norms are taken


def read_wide(tensor: Tensor, start: int, stop: int, ahead: bool = False) -> np.ndarray:
    """Elements of a floating-point tensor as float32, or as float64 where they are stored so."""
    raw = tensor.read(start, stop, ahead)
    return widen(raw, tensor.dtype, np.empty(0 if tensor.dtype in ("F32", "F64") else raw.size, np.float32))


def wide_dtype(tensor: Tensor) -> str:
    """The type that :func:`read_wide` gives, as safetensors names it."""
    return "F64" if tensor.dtype == "F64" else "F32"


@dataclass(frozen=True)
class Widened(Tensor):
    """A tensor that the adapter leaves as it is."""

    base: Tensor

    @property
    def files(self) -> frozenset[Path]:
        """Those of the base."""
        return self.base.files

    def read(self, start: int, stop: int, ahead: bool = False) -> np.ndarray:
        """Elements of the base."""
        return read_wide(self.base, start, stop, ahead)

    def first_rows(self, shape: tuple[int, ...]) -> Widened:
        """The base's first rows."""
        return replace(self, shape=shape, base=self.base.first_rows(shape))


@dataclass(frozen=True)
class ShiftedBias(Tensor):
    """A bias with the bias of an adapter's B added (``lora_bias``): base + scale · shift."""

    base: Tensor
    shift: Tensor
    scale: float

    @property
    def files(self) -> frozenset[Path]:
        """Those of base and adapter."""
        return self.base.files | self.shift.files

    def read(self, start: int, stop: int, ahead: bool = False) -> np.ndarray:
        """Elements of the sum, rounded once."""
        sums = read_wide(self.base, start, stop).astype(np.float64)
        sums += self.scale * read_wide(self.shift, start, stop).astype(np.float64)
        return sums.astype(FLOATING[self.dtype])

    def first_rows(self, shape: tuple[int, ...]) -> ShiftedBias:
        """The first elements."""
        return replace(self, shape=shape)


@dataclass(frozen=True)
class LowRankSum(Tensor):
    """A weight with an adapter merged in: base + scale · B·A (LoRA, arXiv:2106.09685).

    With DoRA (arXiv:2402.09353) each output's weights are then brought to a length that was learnt.

    base: of the weight's shape, (rows, columns).
    a: A, (r, inputs). b: B, (outputs, r).
    transposed: does the weight have its inputs as rows (Conv1D, embeddings)? It is added (B·A)ᵀ then.
    magnitude: DoRA's lengths, one an output; None without DoRA.
    """

    base: Tensor
    a: Tensor
    b: Tensor
    scale: float
    transposed: bool
    magnitude: Tensor | None = None
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def files(self) -> frozenset[Path]:
        """Those of base and adapter."""
        return self.base.files | self.a.files | self.b.files

    def first_rows(self, shape: tuple[int, ...]) -> LowRankSum:
        """The first rows; DoRA's lengths stay those of the whole weight."""
        cut = replace(self, shape=shape)
        if self.magnitude is not None:
            cut.__dict__["_lengths"] = self._factors()
        return cut

    def read(self, start: int, stop: int, ahead: bool = False) -> np.ndarray:
        """Elements of the merged weight, rounded once."""
        out = np.empty(stop - start, FLOATING[self.dtype])
        self._merge(start, stop, out, None if self.magnitude is None else self._factors())
        return out

    def _factors(self) -> np.ndarray:
        with self._lock:  # one pass over the weight, not one a thread
            return self._lengths

    @cached_property
    def _lengths(self) -> np.ndarray:
        """DoRA's factor of each output: the learnt length over that of base + scale · B·A, float64, (outputs,)."""
        assert self.magnitude is not None
        squares = np.zeros(self.magnitude.size)
        for start, tile in self._tiles():
            rows = tile.reshape(-1, self.shape[1])
            if self.transposed:
                squares += np.einsum("ij,ij->j", rows, rows)
            else:
                first = start // self.shape[1]
                squares[first : first + len(rows)] = np.einsum("ij,ij->i", rows, rows)
        learnt = read_wide(self.magnitude, 0, self.magnitude.size).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros gives NaN, which reading reports
            factors: np.ndarray = learnt / np.sqrt(squares)
        return factors

    def _tiles(self) -> Iterator[tuple[int, np.ndarray]]:
        """All of base + scale · B·A in float64, some whole rows at a time, each with its first element."""
        step = max(1, _TILE // self.shape[1]) * self.shape[1]
        for start in range(0, self.base.size, step):
            tile = np.empty(min(step, self.base.size - start))
            self._merge(start, start + tile.size, tile, None)
            yield start, tile

    def _merge(self, start: int, stop: int, out: np.ndarray, factors: np.ndarray | None) -> None:
        width = self.shape[1]
        top, bottom = start // width, -(-stop // width)
        rank = self.a.shape[0]
        if self.transposed:
            up = _matrix(self.a, 0, rank)[:, top:bottom].T
            down = _matrix(self.b, 0, width).T
        else:
            up, down = _matrix(self.b, top, bottom), _matrix(self.a, 0, rank)
        rows, columns = np.ones(bottom - top), np.ones(width)
        if factors is not None and self.transposed:
            columns = factors
        elif factors is not None:
            rows = factors[top:bottom]
        base = np.array(read_wide(self.base, start, stop))  # writable, as all arrays here: one compiled form
        matrices = np.ascontiguousarray(up, np.float64), np.ascontiguousarray(down, np.float64)
        scale = np.array([self.scale], np.float64)
        _add_low_rank(base, *matrices, scale, np.array(rows), np.array(columns), start - top * width, out)


def _matrix(tensor: Tensor, top: int, bottom: int) -> np.ndarray:
    """Rows of a matrix."""
    width = tensor.shape[1]
    return read_wide(tensor, top * width, bottom * width).reshape(bottom - top, width)
