"""Stored elements in another floating-point type, rounded once."""

from __future__ import annotations

import numpy as np

from cpift.checkpoint.stream import native
from cpift.errors import CpiftError
from cpift.kernels.lazy import compiled

_as_float64, _rounded = compiled("as_float64"), compiled("rounded")

NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
"""Types by the names that users write, and as safetensors names them."""
_KERNEL_TYPE = {"F32": np.float32, "BF16": np.uint16, "F16": np.float64, "F64": np.float64}  # numba has no float16


def converted(raw: np.ndarray, source: str, target: str, name: str) -> np.ndarray:
    """Elements of type ``source`` in type ``target``; as they are where the two are the same.

    Args:
        raw: elements as a tensor reads them, (n,).
        source: their type, as safetensors names it.
        target: the type wanted.
        name: of the tensor, for the message.

    Raises:
        CpiftError: a value that the type cannot hold.
    """
    if source == target:
        return raw
    values = np.empty(raw.size)
    _as_float64(native(raw), values)
    out = np.empty(raw.size, _KERNEL_TYPE[target])
    _rounded(values, out)
    with np.errstate(over="ignore"):
        stored: np.ndarray = out.astype(np.float16) if target == "F16" else out
    infinite = ((stored & 0x7F80) == 0x7F80) if target == "BF16" else ~np.isfinite(stored)
    if infinite.any() and np.isfinite(values[infinite]).any():
        raise CpiftError(f"{name}: holds a value that {target} cannot hold; choose a wider dtype")
    return stored
