"""Stored elements as numbers, and numbers rounded to what is stored; compiled by numba.

Stored bf16 comes as uint16; everything else as float32 or float64.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import overload

from cpift.kernels.intrinsics import number, pointer, stack

STRIP = 2048

_jit = numba.njit(error_model="numpy")


@_jit
def as_float64(stored, out):  # type: ignore[no-untyped-def]
    """Write the stored elements, (n,), into ``out``, float64 (n,)."""
    for j in range(stored.size):
        out[j] = number(stored[j])


@_jit
def typed(address, low, n, kind):  # type: ignore[no-untyped-def]
    """Elements ``low`` to ``low + n`` of what is stored at ``address``, as an array of ``kind``; the caller keeps it alive."""
    return numba.carray(pointer(address), (low + n,), kind)[low:]


@_jit
def widen_strip(address, itemsize, low, n, out):  # type: ignore[no-untyped-def]
    """Elements ``low`` to ``low + n`` of what is stored at ``address``, as float64; by size bf16, float32 or float64."""
    if itemsize == 2:
        as_float64(numba.carray(pointer(address + 2 * low), (n,), np.uint16), out)
    elif itemsize == 4:
        as_float64(numba.carray(pointer(address + 4 * low), (n,), np.float32), out)
    else:
        as_float64(numba.carray(pointer(address + 8 * low), (n,), np.float64), out)


@_jit
def element(address, itemsize, at):  # type: ignore[no-untyped-def]
    """Element ``at`` of what is stored at ``address``, as float64."""
    if itemsize == 2:
        return np.float64(number(numba.carray(pointer(address + 2 * at), (1,), np.uint16)[0]))
    if itemsize == 4:
        return np.float64(numba.carray(pointer(address + 4 * at), (1,), np.float32)[0])
    return numba.carray(pointer(address + 8 * at), (1,), np.float64)[0]


@_jit
def round_to_bf16(values, out):  # type: ignore[no-untyped-def]
    """Round float64 (n,) to bf16 bits, uint16 (n,), once: to nearest, ties to even.

    By way of float32 a value beside a tie would be rounded onto it, and then to the wrong side.
    """
    room = stack(4 * STRIP)
    strip, bits = numba.carray(room, (STRIP,), np.float32), numba.carray(room, (STRIP,), np.uint32)
    for low in range(0, values.size, STRIP):
        n = min(STRIP, values.size - low)
        source, target = values[low : low + n], out[low : low + n]
        for j in range(n):
            strip[j] = np.float32(source[j])
        ties = np.int32(0)
        for j in range(n):
            ties += np.int32((bits[j] & np.uint32(0xFFFF)) == np.uint32(0x8000))
            up = np.uint32(0x7FFF) + ((bits[j] >> np.uint32(16)) & np.uint32(1))
            target[j] = np.uint16((bits[j] + up) >> np.uint32(16))
        if ties:
            for j in range(n):
                if (bits[j] & np.uint32(0xFFFF)) == np.uint32(0x8000) and np.float64(strip[j]) != source[j]:
                    upper = bits[j] >> np.uint32(16)
                    target[j] = np.uint16(upper + np.uint32(abs(source[j]) > abs(np.float64(strip[j]))))


def store(values, out):  # type: ignore[no-untyped-def]
    """Round float64 values into ``out``, whatever its type; uint16 is bf16."""
    raise NotImplementedError("for compiled code only")


@overload(store)
def _store(values, out):  # type: ignore[no-untyped-def]
    if out.dtype == types.uint16:
        return lambda values, out: round_to_bf16(values, out)

    def plain(values, out):  # type: ignore[no-untyped-def]
        for j in range(values.size):
            out[j] = values[j]

    return plain


@_jit
def rounded(values, out):  # type: ignore[no-untyped-def]
    """As :func:`store`, for callers that are not compiled."""
    store(values, out)
