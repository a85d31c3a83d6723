"""The k best of a stream, exactly: a buffer of 2k candidates, a bound that rises, ties to the earlier position."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpift.kernels.loops import Loops

SEGMENT = 2**31  # positions within a segment fit in 32 bits
# A candidate is one uint64: 31 bits of |Δ|, one of sign, 32 of position within the segment.
_KEY = np.uint64(33)
INFINITE = 0x7F800000  # bits of |Δ| from here on are infinite or NaN


class Taken(NamedTuple):
    """The k best: positions and signs by parameter; the smallest |Δ| among them, None without any."""

    positions: dict[str, np.ndarray]
    negative: dict[str, np.ndarray]
    threshold: float | None


class Candidates:
    """The best candidates of one task, in the order of flat positions; ties fall to the earlier one by that order."""

    def __init__(self, count: int, segments: int, bound: int, file: Path | None, loops: Loops) -> None:
        self.count, self._loops = count, loops
        self._room = 2 * count
        self._buffer: np.ndarray = (
            np.asarray(np.memmap(file, np.uint64, "w+", shape=(self._room,)))
            if file and count
            else np.empty(self._room, np.uint64)
        )
        self.filled = 0
        self._per_segment = np.zeros(segments, np.int64)
        self._uncounted = 0
        self._histogram = np.zeros(2**16, np.int64)
        # Only what is greater than the bound can still be chosen; where k = 0, nothing but NaN is. What is held already
        # may be dropped below the floor only: it may hold the first few of many equal to the bound.
        self.bound, self._floor = bound, 0

    @property
    def nbytes(self) -> int:
        """Memory set aside."""
        return 8 * self._room

    def add(self, segment: int, entries: np.ndarray, bound: int) -> None:
        """Take a block's candidates, all above ``bound``; blocks come in order."""
        if not self.count or not len(entries):
            return
        self._uncounted += len(entries)
        while len(entries):
            least = np.uint64((max(self.bound, bound) + 1) << int(_KEY))  # the bound may have risen since
            looked_at, filled = self._loops.take_in(entries, least, self._buffer, self.filled, self._histogram)
            self._per_segment[segment] += filled - self.filled
            self.filled, entries = filled, entries[looked_at:]
            if self.filled == self._room:
                self._keep(self._floor, self.filled)
                if self.filled > self._room * 3 // 4:  # ties: cut exactly
                    self._compact()
        if self.filled >= self.count and self._uncounted > self.count // 64:
            edge, _ = cut(self._histogram, self.count)
            self._uncounted = 0
            if edge << 15 > self.bound:
                self._floor, self.bound = edge << 15, (edge << 15) - 1

    def _compact(self) -> None:
        """Keep the best k; from now on only what is greater than the smallest of them can be chosen."""
        smallest, ties = self._kth_largest()
        self._keep(smallest, ties)
        self._floor = self.bound = smallest

    def _keep(self, least: int, ties: int) -> None:
        """Drop what is below the key ``least``, and all but the first ``ties`` of those equal to it."""
        self.filled = self._loops.keep_best(self._buffer[: self.filled], self._per_segment, least, ties)

    def _kth_largest(self) -> tuple[int, int]:
        """The k-th largest key, and how many of the keys equal to it belong to the best k.

        All that were counted and lie in a higher bin than the k-th are held, so that no second count is needed there.
        """
        upper, rest = cut(self._histogram, self.count)
        low = np.zeros(2**15, np.int64)
        self._loops.count_keys(self._buffer[: self.filled], upper, low)
        lower, ties = cut(low, rest)
        return (upper << 15) | lower, ties

    def take(self, segments: list[tuple[str, int]], shapes: Mapping[str, tuple[int, ...]]) -> Taken:
        """Positions and signs of the k best, by parameter; the candidates are used up."""
        held, lengths = self._buffer[: self.filled], self._per_segment
        least, ties = 0, self.filled
        if self.filled > self.count:
            least, ties = self._kth_largest()
        elif self.filled:
            least = int(held.min() >> _KEY)
        sizes = {name: int(np.prod(shapes[name], dtype=np.int64)) for name, _ in segments}
        kind = np.int32 if max(sizes.values(), default=0) < 2**31 else np.int64
        count = min(self.filled, self.count)
        flat, signs = np.empty(count + 1, kind), np.empty(count + 1, np.bool_)
        offsets = np.array([offset for _, offset in segments], np.int64)
        self._loops.unpack_best(held, lengths, offsets, least, ties, flat, signs)
        positions: dict[str, np.ndarray] = {}
        negative: dict[str, np.ndarray] = {}
        by_name: dict[str, int] = {}
        for (name, _), length in zip(segments, lengths.tolist(), strict=True):
            by_name[name] = by_name.get(name, 0) + length
        start = 0
        for name, length in by_name.items():
            if length:
                here = slice(start, start + length)
                positions[name] = flat[here].astype(np.int32 if sizes[name] < 2**31 else np.int64, copy=False)
                negative[name] = signs[here]
                start = here.stop
        return Taken(positions, negative, value_of(least) if count else None)


def has_infinite(entries: np.ndarray) -> bool:
    """Is one of the updates infinite or NaN?"""
    return bool(len(entries)) and int(entries.max() >> _KEY) >= INFINITE


def cut(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """The bin in which the count-th largest lies, and how many of that bin belong to the count largest."""
    from_top = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(from_top, count))
    above = int(from_top[place - 1]) if place else 0
    return len(histogram) - 1 - place, count - above


def value_of(bits: int) -> float:
    """The float32 of these bits."""
    return float(np.array(bits, np.uint32).view(np.float32))
