"""The loops of selection in numpy, for models so small that importing numba would take longer than the work.

Each has the arguments, and the result to the bit, of the compiled one of its name, where both are described; sums of
:func:`add_update_gram` agree to rounding.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np

_TYPES: dict[int, type[np.generic]] = {2: np.uint16, 4: np.float32, 8: np.float64}  # as stored; uint16 is bf16
_KEY, _SIGN = np.uint64(33), np.uint64(32)


def read_into(descriptors: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, addresses: np.ndarray) -> int:
    """Read from open files to addresses."""
    places = zip(descriptors.tolist(), offsets.tolist(), sizes.tolist(), addresses.tolist(), strict=True)
    for i, (descriptor, offset, size, address) in enumerate(places):
        if descriptor < 0 or not size:
            continue
        target, done = memoryview((ctypes.c_uint8 * size).from_address(address)), 0
        while done < size:
            got = os.preadv(descriptor, [target[done:]], offset + done)
            if not got:
                return i
            done += got
    return -1


def scan(
    addresses: np.ndarray,
    itemsizes: np.ndarray,
    size: int,
    first: int,
    bounds: np.ndarray,
    candidates: np.ndarray,
    found: np.ndarray,
    zeros: np.ndarray,
    samples: np.ndarray,
    every: int,
) -> None:
    """Collect the updates above a bound, and count those that are zero."""
    before = _singles(addresses[0], itemsizes[0], size)
    for t in range(bounds.size):
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found by its key
            update = _singles(addresses[t + 1], itemsizes[t + 1], size) - before
        bits = update.view(np.uint32)
        keys = (bits & np.uint32(0x7FFFFFFF)).view(np.int32)
        above = np.flatnonzero(keys > bounds[t])
        chosen = bits[above]
        high = ((chosen << np.uint32(1)) | (chosen >> np.uint32(31))).astype(np.uint64)
        begin, end = found[t], found[t] + len(above)
        candidates[t, begin:end] = (high << _SIGN) | (above + first).astype(np.uint64)
        found[t] = end
        zeros[t] += np.count_nonzero(keys == 0)
        samples[t] += np.bincount(keys[-first % every :: every] >> 15, minlength=samples.shape[1])


def take_in(
    entries: np.ndarray, least: np.uint64, buffer: np.ndarray, filled: int, histogram: np.ndarray
) -> tuple[int, int]:
    """Append candidates until the buffer is full."""
    wanted = np.flatnonzero(entries >= least)[: buffer.size - filled]
    looked_at = entries.size
    if filled + len(wanted) == buffer.size:  # what comes behind the last that found room was not looked at
        looked_at = int(wanted[-1]) + 1 if len(wanted) else 0
    histogram += np.bincount((entries[:looked_at] >> np.uint64(48)).astype(np.int64), minlength=len(histogram))
    buffer[filled : filled + len(wanted)] = entries[wanted]
    return looked_at, filled + len(wanted)


def keep_best(candidates: np.ndarray, lengths: np.ndarray, least: int, ties: int) -> int:
    """Drop candidates below a key, and all but the first few of those equal to it."""
    best = candidates[: lengths.sum()][_best(candidates, lengths, least, ties)]
    candidates[: len(best)] = best
    return len(best)


def count_keys(candidates: np.ndarray, upper: int, histogram: np.ndarray) -> None:
    """Count the upper bits of all keys, or the lower bits of those with this upper."""
    keys = (candidates >> _KEY).astype(np.int64)
    bins = keys >> 15 if upper < 0 else keys[keys >> 15 == upper] & 0x7FFF
    histogram += np.bincount(bins, minlength=len(histogram))


def unpack_best(
    candidates: np.ndarray,
    lengths: np.ndarray,
    offsets: np.ndarray,
    least: int,
    ties: int,
    positions: np.ndarray,
    negative: np.ndarray,
) -> None:
    """Positions and signs of the best candidates."""
    shift = np.repeat(offsets, lengths)
    kept = _best(candidates, lengths, least, ties)
    best = candidates[: len(kept)][kept]
    positions[: len(best)] = (best & np.uint64(0xFFFFFFFF)).astype(np.int64) + shift[kept]
    negative[: len(best)] = (best >> _SIGN) & np.uint64(1)


def count_unchanged_rows(addresses: np.ndarray, itemsizes: np.ndarray, rows: int, width: int) -> int:
    """Rows of two matrices whose elements are equal."""
    before, after = (_singles(a, size, rows * width) for a, size in zip(addresses, itemsizes, strict=True))
    return int((before == after).reshape(rows, width).all(axis=1).sum())


def count_common(a: np.ndarray, b: np.ndarray, negative_a: np.ndarray, negative_b: np.ndarray) -> tuple[int, int]:
    """Common elements of two sorted arrays, and those of equal sign."""
    common, in_a, in_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    return len(common), int(np.count_nonzero(negative_a[in_a] == negative_b[in_b]))


def add_update_gram(addresses: np.ndarray, itemsizes: np.ndarray, size: int, total: np.ndarray) -> None:
    """Add the inner products of all updates, in float64, to the lower triangle."""
    before, *after = (
        _numbers(a, width, size).astype(np.float64) for a, width in zip(addresses, itemsizes, strict=True)
    )
    updates = np.stack(after) - before
    total += np.tril(updates @ updates.T)


def _best(candidates: np.ndarray, lengths: np.ndarray, least: int, ties: int) -> np.ndarray:
    """Which candidates are above the key, or among the first equal to it; ``lengths`` becomes their number per segment."""
    keys = candidates[: lengths.sum()] >> _KEY
    equal = keys == np.uint64(least)
    kept: np.ndarray = (keys > np.uint64(least)) | (equal & (np.cumsum(equal) <= ties))
    counts = np.concatenate([[0], np.cumsum(kept)])
    lengths[:] = np.diff(counts[np.concatenate([[0], np.cumsum(lengths)])])
    return kept


def _singles(address: int, itemsize: int, size: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return _numbers(address, itemsize, size).astype(np.float32)


def _numbers(address: int, itemsize: int, size: int) -> np.ndarray:
    """The elements stored at an address, as numbers; whoever calls keeps them alive."""
    memory = (ctypes.c_uint8 * (int(itemsize) * size)).from_address(int(address))
    stored = np.frombuffer(memoryview(memory), _TYPES[int(itemsize)])
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32) if itemsize == 2 else stored
