"""The inner loops of selection and fusion, compiled by numba; they run without the interpreter's lock.

Each works on a strip of STRIP elements at a time, so that all that is done with a strip happens in the cache.
Stored bf16 comes as uint16 with its flag set; everything else as float32 or float64.
"""

from __future__ import annotations

import numba
import numpy as np

STRIP = 2048
GROUP = 16
SAMPLE = 64  # every 64th update goes into the estimate of the median

_jit = numba.njit(nogil=True, cache=True)
_jit_sum = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})  # lets sums run in vector lanes


@_jit
def _widen(stored, bf16, out):  # type: ignore[no-untyped-def]
    if bf16:  # the upper half of a float32
        bits = out.view(np.uint32)
        for j in range(stored.size):
            bits[j] = np.uint32(stored[j]) << np.uint32(16)
    else:
        for j in range(stored.size):
            out[j] = stored[j]


@_jit
def scan_updates(base, base_bf16, tuned, tuned_bf16, first, bound, candidates, histogram, sample):  # type: ignore[no-untyped-def]
    """Collect the updates whose bits of \\|Δ\\| are greater than ``bound``.

    base, tuned: stored elements, (n,). first: position of element 0 within its segment.
    candidates: uint64 out, (n,); 31 bits of \\|Δ\\|, one of sign, 32 of position.
    histogram, sample: int64 out, (2**16,), added to: upper 16 bits of \\|Δ\\| of the candidates, and of every 64th update.
    Returns the number of candidates and the number of updates that are zero.
    """
    x, d, keys = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32), np.empty(STRIP, np.int32)
    d_bits = d.view(np.uint32)
    found = zeros = 0
    limit = np.int32(bound)
    for low in range(0, base.size, STRIP):
        n = min(STRIP, base.size - low)
        _widen(base[low : low + n], base_bf16, x)
        _widen(tuned[low : low + n], tuned_bf16, d)
        none = np.int32(0)
        for j in range(n):
            d[j] = d[j] - x[j]
        for j in range(n):
            keys[j] = np.int32(d_bits[j] & np.uint32(0x7FFFFFFF))
            none += np.int32(keys[j] == 0)
        zeros += none
        keys[n:] = -2  # never above the limit
        for group in range(0, n, GROUP):  # most groups hold no candidate, and are passed over at once
            these = keys[group : group + GROUP]
            above = np.int32(0)
            for j in range(GROUP):
                above |= np.int32(these[j] > limit)
            if above:
                for j in range(GROUP):
                    if these[j] > limit:
                        bits = d_bits[group + j]
                        high = (bits << np.uint32(1)) | (bits >> np.uint32(31))
                        candidates[found] = (np.uint64(high) << np.uint64(32)) | np.uint64(first + low + group + j)
                        histogram[these[j] >> 15] += 1
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
def as_float64(stored, bf16, out):  # type: ignore[no-untyped-def]
    """Write the stored elements, (n,), into ``out``, float64 (n,)."""
    strip = np.empty(STRIP, np.float32)
    for low in range(0, stored.size, STRIP):
        n = min(STRIP, stored.size - low)
        source, target = stored[low : low + n], out[low : low + n]
        if bf16:
            _widen(source, bf16, strip)
            for j in range(n):
                target[j] = strip[j]
        else:
            for j in range(n):
                target[j] = source[j]


@_jit_sum
def add_gram(rows, total):  # type: ignore[no-untyped-def]
    """Add the inner products of ``rows``, float64 (m, n), to the lower triangle of ``total``, float64 (m, m)."""
    models, size = rows.shape
    for low in range(0, size, STRIP):
        high = min(low + STRIP, size)
        for a in range(models):
            left = rows[a, low:high]
            for b in range(a + 1):
                right = rows[b, low:high]
                inner = 0.0
                for j in range(left.size):
                    inner += left[j] * right[j]
                total[a, b] += inner


@_jit
def subtract_first(rows):  # type: ignore[no-untyped-def]
    """Subtract row 0 of ``rows``, float64 (m, n), from the others."""
    for a in range(1, rows.shape[0]):
        row, first = rows[a], rows[0]
        for j in range(row.size):
            row[j] -= first[j]


@_jit
def add_scaled(stored, bf16, coefficient, out, fresh):  # type: ignore[no-untyped-def]
    """``out`` (float64, (n,)) becomes coefficient · stored, added to what it was unless ``fresh``."""
    strip = np.empty(STRIP, np.float32)
    for low in range(0, stored.size, STRIP):
        n = min(STRIP, stored.size - low)
        source, target = stored[low : low + n], out[low : low + n]
        if bf16:
            _widen(source, bf16, strip)
            if fresh:
                for j in range(n):
                    target[j] = coefficient * strip[j]
            else:
                for j in range(n):
                    target[j] += coefficient * strip[j]
        elif fresh:
            for j in range(n):
                target[j] = coefficient * source[j]
        else:
            for j in range(n):
                target[j] += coefficient * source[j]


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
