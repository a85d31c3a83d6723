"""The inner loops of selection, compiled by numba; they run without the interpreter's lock.

Each works on a strip of STRIP elements at a time, so that all that is done with a strip happens in the cache.
Stored bf16 comes as uint16; everything else as float32 or float64.
"""

from __future__ import annotations

import numba
import numpy as np

from cpift.kernels.intrinsics import WIDTH, above, bits_of, lowest, number
from cpift.kernels.stored import STRIP

SAMPLE = 64  # every 64th update goes into the estimate of the median

_jit = numba.njit(nogil=True, cache=True)


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
        for group in range(0, n, WIDTH):
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
