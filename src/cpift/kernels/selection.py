"""The inner loops of selection over candidates and positions, compiled by numba, without the interpreter's lock.

A candidate is one uint64: 31 bits of |Δ|, its key, one of sign, 32 of position within a segment.
"""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(error_model="numpy")


@_jit
def take_in(entries, least, buffer, filled, histogram):  # type: ignore[no-untyped-def]
    """Append the candidates from ``least`` on to ``buffer`` from ``filled`` on, until it is full.

    entries: uint64, (n,). histogram: int64 out, (2**16,), added to: upper 16 bits of the key of each that was looked at.
    Returns how many were looked at, and how many the buffer holds.
    """
    room = buffer.size
    for i in range(entries.size):
        if filled == room:
            return i, filled
        entry = entries[i]
        histogram[entry >> np.uint64(48)] += 1
        buffer[filled] = entry  # overwritten by the next where it is too small: no branch to be guessed
        filled += np.int64(entry >= least)
    return entries.size, filled


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
def unpack_best(candidates, lengths, offsets, least, ties, positions, negative):  # type: ignore[no-untyped-def]
    """Positions and signs of the candidates above the key ``least``, and of the first ``ties`` of those equal to it.

    candidates: uint64, in the order of segments. lengths: int64, candidates per segment; becomes how many were taken.
    offsets: int64, what is added to the positions of each segment. Out: positions, an integer type, and negative, bool;
    both have room for one more than are taken.
    """
    least = np.uint64(least)
    read = write = 0
    for segment in range(lengths.size):
        before, offset = write, offsets[segment]
        for i in range(read, read + lengths[segment]):
            entry = candidates[i]
            key = entry >> np.uint64(33)
            equal = key == least
            positions[write] = np.int64(entry & np.uint64(0xFFFFFFFF)) + offset
            negative[write] = np.bool_((entry >> np.uint64(32)) & np.uint64(1))
            write += np.int64((key > least) | (equal & (ties > 0)))
            ties -= np.int64(equal)
        read += lengths[segment]
        lengths[segment] = write - before


@_jit
def count_common(a, b, negative_a, negative_b):  # type: ignore[no-untyped-def]
    """Number of elements of two sorted arrays, (n,) and (m,), that both have, and of those whose signs are equal.

    negative_a, negative_b: bool beside ``a`` and ``b``.
    """
    common = same = i = j = 0
    while i < a.size and j < b.size:
        x, y = a[i], b[j]
        if x == y:
            common += 1
            same += np.int64(negative_a[i] == negative_b[j])
        i += np.int64(x <= y)
        j += np.int64(y <= x)
    return common, same
