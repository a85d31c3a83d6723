"""A tensor of a checkpoint, read piece by piece: what it looks like, whatever it is made from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import DTypeLike

# bf16 has no numpy dtype: its bits come as uint16.
FLOATING: Mapping[str, type[np.generic]] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
OTHER: Mapping[str, int] = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_NUMPY: Mapping[str, type[np.generic]] = {
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Tensor(ABC):
    """Type (as safetensors names it) and shape of a tensor, and access to its elements in row-major order."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def floating(self) -> bool:
        """Is it of a floating-point type?"""
        return self.dtype in FLOATING

    @property
    def numpy_dtype(self) -> DTypeLike:
        """The numpy type of the elements (uint16 for bf16)."""
        return FLOATING.get(self.dtype) or _NUMPY.get(self.dtype, np.uint8)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return itemsize(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    @property
    @abstractmethod
    def files(self) -> frozenset[Path]:
        """The files that it is read from."""

    @abstractmethod
    def read(self, start: int, stop: int, ahead: bool = False) -> np.ndarray:
        """Elements ``start:stop``, read-only where they are a view of the file; bf16 comes as uint16.

        Args:
            start: the first element, row-major.
            stop: one behind the last.
            ahead: map the pages of the file in at once, where all of them will be read.
        """

    def place(self, start: int) -> tuple[int, int] | None:
        """Where element ``start`` lies: descriptor of an open file, and byte; None where elements are computed."""
        return None

    @abstractmethod
    def first_rows(self, shape: tuple[int, ...]) -> Self:
        """The tensor cut to ``shape``, which has fewer rows and is equal otherwise."""


def itemsize(dtype: str) -> int:
    """Bytes of an element of a safetensors dtype name."""
    return np.dtype(FLOATING[dtype]).itemsize if dtype in FLOATING else OTHER[dtype]


def widen(raw: np.ndarray, dtype: str, out: np.ndarray) -> np.ndarray:
    """Stored elements as float32 values (float64 stays).

    Args:
        raw: elements as :meth:`Tensor.read` gives them, (n,).
        dtype: their type, as safetensors names it.
        out: float32 scratch, at least (n,), used where the storage is narrower.
    """
    if dtype in ("F32", "F64"):
        return raw
    target = out[: raw.size]
    if dtype == "BF16":  # bf16 is the upper half of a float32
        bits = target.view(np.uint32)
        bits[:] = raw
        np.left_shift(bits, 16, out=bits)
    else:
        target[:] = raw
    return target
