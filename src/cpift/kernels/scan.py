"""The inner loop of selection over stored elements, compiled by numba; it runs without the interpreter's lock.

It works on a strip of STRIP elements at a time, so that all that is done with a strip happens in the cache: the base is
widened once for all tasks. Models come as the addresses of their stored elements and the sizes of one: 2 is bf16, 4
float32, 8 float64.
"""

from __future__ import annotations

import numba
import numpy as np

from cpift.kernels.intrinsics import WIDTH, bits_of, compare_groups, lowest, number, stack
from cpift.kernels.stored import STRIP, typed

GROUPS = STRIP // WIDTH + 1

_jit = numba.njit(error_model="numpy")


@_jit
def _widen(stored, out):  # type: ignore[no-untyped-def]
    for j in range(stored.size):
        out[j] = np.float32(number(stored[j]))


@_jit
def _entry(bits, position):  # type: ignore[no-untyped-def]
    high = (bits << np.uint32(1)) | (bits >> np.uint32(31))
    return (np.uint64(high) << np.uint64(32)) | np.uint64(position)


@_jit
def _collect(stored, origin, limit, first, row, at, sample, every, hits, masks):  # type: ignore[no-untyped-def]
    """One strip of one task; see :func:`scan`. Returns the number of candidates now, and that of updates not zero."""
    n = stored.size
    groups = n // WIDTH
    count, moved = compare_groups(stored, origin, groups, limit, hits, masks)
    for i in range(count):
        mask, group = masks[i], np.int64(hits[i]) * WIDTH
        while mask:
            j = group + np.int64(lowest(mask))
            mask &= mask - np.uint64(1)
            row[at] = _entry(bits_of(np.float32(number(stored[j])) - origin[j]), first + j)
            at += 1
    for j in range(groups * WIDTH, n):
        bits = bits_of(np.float32(number(stored[j])) - origin[j])
        key = np.int32(bits & np.uint32(0x7FFFFFFF))
        moved += np.int64(key != 0)
        if key > limit:
            row[at] = _entry(bits, first + j)
            at += 1
    for j in range(-first % every, n, every):
        bits = bits_of(np.float32(number(stored[j])) - origin[j])
        sample[(bits & np.uint32(0x7FFFFFFF)) >> np.uint32(15)] += 1
    return at, moved


@_jit
def scan(addresses, itemsizes, size, first, bounds, candidates, found, zeros, samples, every):  # type: ignore[no-untyped-def]
    r"""Collect the updates whose bits of \|Δ\| are greater than a bound, of all tasks.

    addresses, itemsizes: int64 (1 + tasks,), of the base and each task; ``size`` elements of each. first: position of the
    first element within its segment. bounds: int64 (tasks,).
    Out: candidates: uint64 (tasks, room for all), each row filled from ``found`` on; 31 bits of \|Δ\|, one of sign, 32
    of position. found, zeros: int64 (tasks,), brought up to date: number of candidates; of updates that are zero.
    samples: int64 (tasks, 2**16), added to: upper 16 bits of \|Δ\| of every ``every``-th update.
    """
    origin = numba.carray(stack(4 * STRIP), (STRIP,), np.float32)
    hits = numba.carray(stack(4 * GROUPS), (GROUPS,), np.int32)
    masks = numba.carray(stack(8 * GROUPS), (GROUPS,), np.uint64)
    for low in range(0, size, STRIP):
        n = min(STRIP, size - low)
        if itemsizes[0] == 2:
            _widen(typed(addresses[0], low, n, np.uint16), origin)
        elif itemsizes[0] == 4:
            _widen(typed(addresses[0], low, n, np.float32), origin)
        else:
            _widen(typed(addresses[0], low, n, np.float64), origin)
        for t in range(bounds.size):
            address, itemsize = addresses[t + 1], itemsizes[t + 1]
            limit, row, sample, at = np.int32(bounds[t]), candidates[t], samples[t], found[t]
            if itemsize == 2:
                stored = typed(address, low, n, np.uint16)
                at, moved = _collect(stored, origin, limit, first + low, row, at, sample, every, hits, masks)
            elif itemsize == 4:
                single = typed(address, low, n, np.float32)
                at, moved = _collect(single, origin, limit, first + low, row, at, sample, every, hits, masks)
            else:
                double = typed(address, low, n, np.float64)
                at, moved = _collect(double, origin, limit, first + low, row, at, sample, every, hits, masks)
            found[t] = at
            zeros[t] += n - moved


@_jit
def count_unchanged_rows(addresses, itemsizes, rows, width):  # type: ignore[no-untyped-def]
    """Number of rows of two matrices, stored at ``addresses``, whose elements are equal as float32; stops at the first other."""
    unchanged = 0
    for row in range(rows):
        same = True
        for j in range(row * width, (row + 1) * width):
            if _single(addresses[0], itemsizes[0], j) != _single(addresses[1], itemsizes[1], j):
                same = False
                break
        unchanged += np.int64(same)
    return unchanged


@_jit
def _single(address, itemsize, at):  # type: ignore[no-untyped-def]
    if itemsize == 2:
        return np.float32(number(typed(address, at, 1, np.uint16)[0]))
    if itemsize == 4:
        return typed(address, at, 1, np.float32)[0]
    return np.float32(typed(address, at, 1, np.float64)[0])
