"""The inner loops of selection and fusion, compiled by numba; they run without the interpreter's lock.

Each works on a strip of STRIP elements at a time, so that all that is done with a strip happens in the cache.
Stored bf16 comes as uint16; everything else as float32 or float64.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import overload

from cpift.kernels.intrinsics import LANES, above, bits_of, lowest, number, pointer

STRIP = 2048
SAMPLE = 64  # every 64th update goes into the estimate of the median

_jit = numba.njit(nogil=True, cache=True)
_jit_sum = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})  # lets sums run in vector lanes


@_jit
def scan_updates(base, tuned, start, stop, first, bound, candidates, found, sample):  # type: ignore[no-untyped-def]
    r"""Collect the updates whose bits of \|Δ\| are greater than ``bound``.

    base, tuned: stored elements, (n,), of which ``start`` to ``stop`` are looked at. first: position of element 0
    within its segment. candidates: uint64 out, (n,), filled from ``found`` on; 31 bits of \|Δ\|, one of sign, 32 of position.
    sample: int64 out, (2**16,), added to: upper 16 bits of \|Δ\| of every 64th update.
    Returns the number of candidates that there are now, and the number of updates that are zero.
    """
    keys = np.empty(STRIP, np.int32)
    zeros = 0
    limit = np.int32(bound)
    for low in range(start, stop, STRIP):
        n = min(STRIP, stop - low)
        x, y = base[low : low + n], tuned[low : low + n]
        none = np.int32(0)
        for j in range(n):
            update = np.float32(number(y[j])) - np.float32(number(x[j]))
            keys[j] = np.int32(bits_of(update) & np.uint32(0x7FFFFFFF))
            none += np.int32(keys[j] == 0)
        zeros += none
        keys[n:] = -2  # never above the limit
        for group in range(0, n, LANES):
            mask = above(keys, group, limit)
            while mask:
                j = group + np.int64(lowest(mask))
                mask &= mask - np.uint32(1)
                bits = bits_of(np.float32(number(y[j])) - np.float32(number(x[j])))
                high = (bits << np.uint32(1)) | (bits >> np.uint32(31))
                candidates[found] = (np.uint64(high) << np.uint64(32)) | np.uint64(first + low + j)
                found += 1
        for j in range(-(first + low) % SAMPLE, n, SAMPLE):
            sample[keys[j] >> 15] += 1
    return found, zeros


@_jit
def keep_best(candidates, lengths, least, ties):  # type: ignore[no-untyped-def]
    """Drop candidates below the key ``least``, and all but the first ``ties`` of those equal to it, in place.

    lengths: int64, candidates per segment; brought up to date. Returns how many are left.
    """
    least = np.uint64(least)
    read = write = 0
    for segment in range(lengths.size):
        before = write
        for i in range(read, read + lengths[segment]):
            key = candidates[i] >> np.uint64(33)
            equal = key == least
            candidates[write] = candidates[i]
            write += np.int64((key > least) | (equal & (ties > 0)))
            ties -= np.int64(equal)
        read += lengths[segment]
        lengths[segment] = write - before
    return write


@_jit
def count_keys(candidates, upper, histogram):  # type: ignore[no-untyped-def]
    """Add to ``histogram`` the upper 16 bits of each key (``upper`` < 0), or the lower 15 of those with this upper."""
    for i in range(candidates.size):
        key = np.int64(candidates[i] >> np.uint64(33))
        if upper < 0:
            histogram[key >> 15] += 1
        elif key >> 15 == upper:
            histogram[key & 0x7FFF] += 1


@_jit
def unpack(candidates, offset, positions, negative):  # type: ignore[no-untyped-def]
    """Positions (within the parameter: ``offset`` is its segment's) and signs of candidates, all (n,)."""
    for i in range(candidates.size):
        positions[i] = np.int64(candidates[i] & np.uint64(0xFFFFFFFF)) + offset
        negative[i] = (candidates[i] >> np.uint64(32)) & np.uint64(1)


@_jit
def as_float64(stored, out):  # type: ignore[no-untyped-def]
    """Write the stored elements, (n,), into ``out``, float64 (n,)."""
    for j in range(stored.size):
        out[j] = number(stored[j])


@_jit
def _strip(address, itemsize, low, n, out):  # type: ignore[no-untyped-def]
    """Elements ``low`` to ``low + n`` of what is stored at ``address``, as float64; by size bf16, float32 or float64."""
    if itemsize == 2:
        as_float64(numba.carray(pointer(address + 2 * low), (n,), np.uint16), out)
    elif itemsize == 4:
        as_float64(numba.carray(pointer(address + 4 * low), (n,), np.float32), out)
    else:
        as_float64(numba.carray(pointer(address + 8 * low), (n,), np.float64), out)


@_jit_sum
def _inner(left, right):  # type: ignore[no-untyped-def]
    inner = 0.0
    for j in range(left.size):
        inner += left[j] * right[j]
    return inner


@_jit
def add_gram(addresses, itemsizes, size, core, total):  # type: ignore[no-untyped-def]
    """Add to the lower triangle of ``total`` the inner products of θ⁰ and of all updates, outside the core positions.

    addresses, itemsizes: int64 (m,), where the stored elements of θ⁰ and the m - 1 tuned models begin; ``size`` of each.
    core: int64, sorted positions below ``size``. total: float64 (m, m); all NaN where a core value is no number.
    Sums are taken strip by strip, in order.
    """
    models = addresses.size
    rows = np.empty((models, STRIP))
    at = 0
    for low in range(0, size, STRIP):
        n = min(STRIP, size - low)
        for a in range(models):
            _strip(addresses[a], itemsizes[a], low, n, rows[a, :n])
        for a in range(1, models):
            for j in range(n):
                rows[a, j] -= rows[0, j]
        while at < core.size and core[at] < low + n:
            for a in range(models):
                if not np.isfinite(rows[a, core[at] - low]):
                    total[:] = np.nan
                rows[a, core[at] - low] = 0.0
            at += 1
        for a in range(models):
            for b in range(a + 1):
                total[a, b] += _inner(rows[a, :n], rows[b, :n])


@_jit
def combine(addresses, itemsizes, coefficients, out):  # type: ignore[no-untyped-def]
    """``out`` (n,) becomes Σ coefficient · stored, summed in float64, rounded once; uint16 is bf16.

    addresses, itemsizes, coefficients: (m,), see :func:`add_gram`.
    """
    total, strip = np.empty(STRIP), np.empty(STRIP)
    for low in range(0, out.size, STRIP):
        n = min(STRIP, out.size - low)
        total[:] = 0.0
        for a in range(addresses.size):
            _strip(addresses[a], itemsizes[a], low, n, strip[:n])
            factor = coefficients[a]
            if a == 0:  # not added to zero: that would lose the sign of -0.0
                for j in range(n):
                    total[j] = factor * strip[j]
            else:
                for j in range(n):
                    total[j] += factor * strip[j]
        store(total[:n], out[low : low + n])


@_jit
def round_to_bf16(values, out):  # type: ignore[no-untyped-def]
    """Round float64 (n,) to bf16 bits, uint16 (n,), once: to nearest, ties to even.

    By way of float32 a value beside a tie would be rounded onto it, and then to the wrong side.
    """
    strip = np.empty(STRIP, np.float32)
    bits = strip.view(np.uint32)
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
