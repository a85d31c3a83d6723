"""Stage 1, identify: the top p % of all updates of a checkpoint, exactly, in one read (paper section 3.1).

The bit pattern of a non-negative float orders as the float does. While blocks stream by in the order of flat
positions, candidates above a lower bound are appended to a buffer of 2k. A histogram of all candidates gives the
bound: at least k values seen lie at or above it. A full buffer is compacted to what is still above the bound, or, where
ties are too many for that, to the best k. One base serves all checkpoints in the same pass.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from cpift.checkpoint import BLOCK, Block, Checkpoint, align, blocks, excluded, open_checkpoint, widen
from cpift.errors import CpiftError
from cpift.kernels import count_keys, keep_best, scan_updates
from cpift.parallel import ordered_map, thread_local_scratch
from cpift.region import Region

CHUNK = 2**18  # elements of one checkpoint in work at a time
_SEGMENT = 2**31  # positions within a segment fit in 32 bits
_INFINITE = 0x7F800000  # bits of |Δ| from here on are infinite or NaN

# A candidate is one uint64: 31 bits of |Δ|, one of sign, 32 of position within the segment.
_KEY, _SIGN = np.uint64(33), np.uint64(32)


def core_count(percent: str | float | int, total: int) -> int:
    """k = ⌊p·D/100⌋ with p taken as the exact decimal written. Raises :class:`CpiftError` outside (0, 100]."""
    try:
        exact = Fraction(str(percent))
    except (ValueError, ZeroDivisionError):
        exact = Fraction(0)
    if not 0 < exact <= 100:
        raise CpiftError(f"percent: {percent} is not in (0, 100]")
    return int(exact * total / 100)


def identify(
    base: str | Path,
    tuned: Mapping[str, str | Path],
    percent: str | float | int = 1,
    *,
    exclude: Iterable[str] = (),
    chunk: int = CHUNK,
    threads: int | None = None,
    max_memory: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, Region]:
    """Core region of each tuned checkpoint against ``base``.

    Args:
        base, tuned: checkpoints (folders or ``.safetensors`` files); ``tuned`` by task name.
        percent: share of the counted elements, 0 < percent <= 100.
        exclude: shell-style patterns of parameters that do not count.
        chunk: elements in work at a time, 1 to 2**20; changes speed only.
        threads: worker threads, by default one a core; changes speed only.
        max_memory: bytes that candidates may take in memory (16·k a task); above, they go to a scratch file.
        progress: called with the number of bytes read since the last call.

    Returns:
        Task name to :class:`Region`; ``Region.statistics`` holds the share of zero updates, the estimated median
        of \\|Δ\\|, and where the candidates were held.

    Raises:
        CpiftError: checkpoints that do not match, NaN or infinite weights, a percent out of range.
    """
    if not 1 <= chunk <= BLOCK:
        raise CpiftError(f"chunk: {chunk} is not in 1 … {BLOCK}")
    origin = open_checkpoint(base)
    models = {name: align(origin, open_checkpoint(path)) for name, path in tuned.items()}
    skipped = excluded(origin.tensors, exclude)
    total = sum(t.size for name, t in origin.tensors.items() if name not in skipped)
    count = core_count(percent, total)
    segments = [(name, start) for name, t in origin.tensors.items() for start in range(0, t.size, _SEGMENT)]
    number = {segment: i for i, segment in enumerate(segments)}
    spill = max_memory is not None and 16 * count * len(models) > max_memory
    with tempfile.TemporaryDirectory(prefix="cpift-") if spill else nullcontext() as scratch:
        found = {
            name: _Candidates(name, count, len(segments), Path(scratch) / f"{i}" if scratch else None)
            for i, name in enumerate(models)
        }
        samples: dict[int, np.ndarray] = {}
        hashes = {name: model.hasher() for name, model in models.items()}
        base_hash = origin.hasher()

        def work(block: Block) -> tuple[bytes, list[_Found]]:
            bounds = [c.bound for c in found.values()] if block.name not in skipped else None
            mine = samples.setdefault(threading.get_ident(), np.zeros((len(models), 2**16), np.int64))
            return _scan(origin, list(models.values()), block, bounds, mine, chunk)

        for block, (checksum, results) in ordered_map(work, blocks(origin), threads):
            base_hash.add(checksum)
            segment = number[block.name, block.start // _SEGMENT * _SEGMENT]
            for name, result in zip(models, results, strict=True):
                hashes[name].add(result.checksum)
                if result.finite:
                    found[name].add(segment, result)
                else:
                    _blame(origin, models[name], block)
            progress((block.stop - block.start) * origin.tensors[block.name].itemsize * (1 + len(models)))
        shapes = {name: t.shape for name, t in origin.tensors.items()}
        base_print = base_hash.hexdigest()
        sampled = sum(samples.values(), np.zeros((len(models), 2**16), np.int64))
        return {
            name: found[name].region(
                segments, shapes, total, str(percent), base_print, hashes[name].hexdigest(), sampled[i]
            )
            for i, name in enumerate(models)
        }


class _Found(NamedTuple):
    checksum: bytes
    entries: np.ndarray  # candidates
    histogram: np.ndarray  # of the upper 16 bits of their |Δ|
    zeros: int

    @property
    def finite(self) -> bool:
        return not self.histogram[_INFINITE >> 15 :].any()


def _scan(
    base: Checkpoint, models: list[Checkpoint], block: Block, bounds: list[int] | None, samples: np.ndarray, chunk: int
) -> tuple[bytes, list[_Found]]:
    """One block of all checkpoints, chunk by chunk; ``bounds`` is None where the parameter does not count."""
    name, flags = block.name, [m.tensors[block.name].dtype == "BF16" for m in (base, *models)]
    (candidates,) = thread_local_scratch("candidates", chunk, (np.uint64,))
    hashes = [xxhash.xxh3_64() for _ in flags]
    entries: list[list[np.ndarray]] = [[] for _ in models]
    histograms = [np.zeros(2**16, np.int64) for _ in models]
    zeros = [0] * len(models)
    for start in range(block.start, block.stop, chunk):
        stop = min(start + chunk, block.stop)
        stored = [model.raw(name, start, stop) for model in (base, *models)]
        for hashed, raw in zip(hashes, stored, strict=True):
            hashed.update(raw.data)
        if bounds is None:
            continue
        origin, *tuned = (raw.astype(np.float32) if raw.dtype == np.float16 else raw for raw in stored)
        for i, raw in enumerate(tuned):
            found, none = scan_updates(
                origin, flags[0], raw, flags[1 + i], start % _SEGMENT, bounds[i], candidates, histograms[i], samples[i]
            )
            zeros[i] += none
            if found:
                entries[i].append(candidates[:found].copy())
    empty = np.empty(0, np.uint64)
    return hashes[0].digest(), [
        _Found(hashes[1 + i].digest(), np.concatenate(entries[i]) if entries[i] else empty, histograms[i], zeros[i])
        for i in range(len(models))
    ]


def _blame(base: Checkpoint, model: Checkpoint, block: Block) -> None:
    for checkpoint in (base, model):
        scratch = np.empty(block.stop - block.start, np.float32)
        values = widen(checkpoint.raw(*block), checkpoint.tensors[block.name].dtype, scratch)
        if not np.isfinite(values).all():
            raise CpiftError(f"{checkpoint.path}: {block.name} holds NaN or infinite weights; training diverged")
    raise CpiftError(f"{model.path}: the update of {block.name} overflows float32")


class _Candidates:
    """The best candidates of one task, in the order of flat positions; ties fall to the earlier one by that order."""

    def __init__(self, name: str, count: int, segments: int, file: Path | None) -> None:
        self.name, self.count = name, count
        self._room = 2 * count
        self._buffer: np.ndarray = (
            np.memmap(file, np.uint64, "w+", shape=(self._room,)) if file and count else np.empty(self._room, np.uint64)
        )
        self._spilled = file is not None
        self._filled = 0
        self._per_segment = np.zeros(segments, np.int64)
        self._zeros = self._uncounted = 0
        self._histogram = np.zeros(2**16, np.int64)
        # Only what is greater than the bound can still be chosen. Nothing is, but NaN, where k = 0. What is held
        # already may be dropped below the floor only: it may hold the first few of many equal to the bound.
        self.bound = -1 if count else _INFINITE - 1
        self._floor = 0

    def add(self, segment: int, found: _Found) -> None:
        """Take what a block brought; blocks come in order."""
        self._zeros += found.zeros
        entries = found.entries
        if not self.count or not len(entries):
            return
        self._histogram += found.histogram
        entries = entries[entries > _last(self.bound)] if self.bound >= 0 else entries  # it may have risen since
        while len(entries):
            part = entries[: self._room - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            self._per_segment[segment] += len(part)
            entries = entries[len(part) :]
            if self._filled == self._room:
                self._keep(self._floor, self._filled)
                if self._filled > self._room * 3 // 4:  # ties: cut exactly
                    self._compact()
            if len(entries):
                entries = entries[entries > _last(self.bound)]
        self._uncounted += len(found.entries)
        if self._filled >= self.count and self._uncounted > self.count // 64:
            edge, _ = _cut(self._histogram, self.count)
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
        self._filled = keep_best(self._buffer[: self._filled], self._per_segment, least, ties)

    def _kth_largest(self) -> tuple[int, int]:
        """The k-th largest key, and how many of the keys equal to it belong to the best k."""
        filled = self._buffer[: self._filled]
        high, low = np.zeros(2**16, np.int64), np.zeros(2**15, np.int64)
        count_keys(filled, -1, high)
        upper, rest = _cut(high, self.count)
        count_keys(filled, upper, low)
        lower, ties = _cut(low, rest)
        return (upper << 15) | lower, ties

    def region(
        self,
        segments: list[tuple[str, int]],
        shapes: Mapping[str, tuple[int, ...]],
        total: int,
        percent: str,
        base: str,
        tuned: str,
        sample: np.ndarray,
    ) -> Region:
        """The region of the k best."""
        if self._filled > self.count:
            self._compact()
        positions: dict[str, list[np.ndarray]] = {}
        negative: dict[str, list[np.ndarray]] = {}
        smallest, start = None, 0
        for (name, offset), length in zip(segments, self._per_segment.tolist(), strict=True):
            entries = self._buffer[start : start + length]
            start += length
            if not length:
                continue
            kind = np.int32 if np.prod(shapes[name], dtype=np.int64) < 2**31 else np.int64
            place = (entries & np.uint64(0xFFFFFFFF)).astype(kind)
            positions.setdefault(name, []).append(place + np.asarray(offset, kind))
            negative.setdefault(name, []).append(((entries >> _SIGN) & np.uint64(1)).astype(np.bool_))
            least = int((entries >> _KEY).min())
            smallest = least if smallest is None else min(smallest, least)
        held = 8 * self._room
        spilled, self._buffer = self._spilled, np.empty(0, np.uint64)
        return Region(
            {n: p[0] if len(p) == 1 else np.concatenate(p) for n, p in positions.items()},
            total,
            {n: p[0] if len(p) == 1 else np.concatenate(p) for n, p in negative.items()},
            {n: shapes[n] for n in positions},
            percent,
            None if smallest is None else _value(smallest),
            base,
            tuned,
            self._statistics(total, held, spilled, sample),
        )

    def _statistics(self, total: int, held: int, spilled: bool, sample: np.ndarray) -> dict[str, Any]:
        half = (int(sample.sum()) + 1) // 2
        median = _value(int(np.searchsorted(np.cumsum(sample), half)) << 15) if half else None
        return {
            "zero_share": self._zeros / total if total else 0.0,
            "median": median,  # of every 64th |Δ|, to 2**-8 of its size
            "candidate_bytes": held,
            "candidates_in": "scratch file" if spilled else "memory",
        }


def _last(key: int) -> np.uint64:
    """The greatest candidate of this key."""
    return np.uint64(((key + 1) << 33) - 1)


def _cut(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """The bin in which the count-th largest lies, and how many of that bin belong to the count largest."""
    from_top = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(from_top, count))
    above = int(from_top[place - 1]) if place else 0
    return len(histogram) - 1 - place, count - above


def _value(bits: int) -> float:
    return float(np.array(bits, np.uint32).view(np.float32))
