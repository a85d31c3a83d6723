"""Core regions: which flat positions of which parameters belong to a task (paper section 3.1).

A region holds, for each parameter, a sorted 1-D array of row-major positions. It joins by ``|``, ``&`` and ``-``,
saves as one safetensors file (format ``cpift.region/1``) and loads by memory map.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cpift.checkpoint.safetensors import HEADER_LIMIT, read_header_and_metadata, write_arrays
from cpift.errors import CpiftError
from cpift.files.layout import REGION_FILE

FORMAT = "cpift.region/1"
WINDOW = 2**22  # elements looked at together when two regions are compared
_SIGN_LIMIT = HEADER_LIMIT // 2  # above, the header would grow over what safetensors allows


@dataclass(frozen=True)
class Region:
    """A set of parameter positions.

    Attributes:
        positions: parameter name to sorted 1-D int32 (int64 for a parameter of 2**31 elements or more), never empty.
        total: number of counted elements (D).
        negative: parameter name to bool array beside ``positions``: the update is below zero there; None if unknown.
        shapes: shape of each parameter named in ``positions``, where known.
        percent: p, with which the region was selected; None for a joined one.
        threshold: smallest |Δ| of the region; None for a joined one.
        base: fingerprint of the base; "" if unknown.
        tuned: fingerprint of the fine-tuned checkpoint; "" if unknown.
        statistics: of the selection, see :func:`cpift.method.identify.identify`.
    """

    positions: Mapping[str, np.ndarray]
    total: int
    negative: Mapping[str, np.ndarray] | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    percent: str | None = None
    threshold: float | None = None
    base: str = ""
    tuned: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of positions (k)."""
        return sum(len(p) for p in self.positions.values())

    def __len__(self) -> int:
        return self.count

    def __or__(self, other: Region) -> Region:
        """Positions in either region. A joined region has neither signs nor threshold: they were of one update."""
        return self._join(other, lambda a, b: merged([a, b]))

    def __and__(self, other: Region) -> Region:
        """Positions in both regions."""
        return self._join(other, lambda a, b: a[_member(a, b)])

    def __sub__(self, other: Region) -> Region:
        """Positions of this region that the other lacks."""
        return self._join(other, lambda a, b: a[~_member(a, b)])

    def _join(self, other: Region, combine: Any) -> Region:
        _same_base(self, other)
        joined = {}
        empty = np.empty(0, np.int32)
        for name in sorted({*self.positions, *other.positions}):
            merged = combine(self.positions.get(name, empty), other.positions.get(name, empty))
            if len(merged):
                joined[name] = merged
        return Region(
            joined,
            max(self.total, other.total),
            shapes={**self.shapes, **other.shapes},
            base=self.base or other.base,
        )

    def complement(self, shapes: Mapping[str, tuple[int, ...]]) -> Region:
        """All other positions of a model: what to freeze so that only this region is trained.

        Memory: 4 bytes a position (8 in a parameter of 2**31 elements or more).

        Args:
            shapes: of all parameters, by name: ``{n: tuple(p.shape) for n, p in model.named_parameters()}``.

        Raises:
            CpiftError: the region names a parameter that is not among them, or of another shape.
        """
        for name, positions in self.positions.items():
            shape = shapes.get(name)
            if shape is None or self.shapes.get(name, shape) != shape or positions[-1] >= math.prod(shape):
                raise CpiftError(f"region: {name} has no parameter of the same name and shape")
        others: dict[str, np.ndarray] = {}
        for name, shape in shapes.items():
            free = np.ones(math.prod(shape), np.bool_)
            free[self.positions.get(name, np.empty(0, np.int64))] = False
            kind = np.int32 if free.size < 2**31 else np.int64
            left = np.flatnonzero(free).astype(kind)
            if len(left):
                others[name] = left
        return Region(
            others, sum(map(math.prod, shapes.values())), shapes={n: shapes[n] for n in others}, base=self.base
        )

    def detached(self) -> Region:
        """Without the checkpoints that it was made from: regions that are frozen together come from several."""
        return replace(self, base="", tuned="")

    def without(self, other: Region) -> Region:
        """Positions that the other lacks, whichever checkpoints that was made from; the same object where none go."""
        left = self.detached() - other.detached()
        if left.count == self.count:
            return self
        return replace(left, base=self.base, tuned=self.tuned, statistics=self.statistics)

    def overlap(self, other: Region) -> tuple[int, int | None]:
        """Number of common positions, and at how many of them both updates have the same sign (None if unknown)."""
        _same_base(self, other)
        common, agree = 0, 0
        signed = self.negative is not None and other.negative is not None
        for name, own in self.positions.items():
            theirs = other.positions.get(name)
            if theirs is None:
                continue
            signs = (self.negative[name], other.negative[name]) if self.negative and other.negative else None
            for a, b in _windows(own, theirs):
                low = min(own[a.start], theirs[b.start])
                width = int(max(own[a.stop - 1], theirs[b.stop - 1]) - low) + 1
                present = np.zeros(width, np.bool_)
                present[own[a] - low] = True
                place = theirs[b] - low
                hit = present[place]
                common += int(np.count_nonzero(hit))
                if signs is not None:
                    minus = np.zeros(width, np.bool_)
                    minus[own[a] - low] = signs[0][a]
                    agree += int(np.count_nonzero(hit & (minus[place] == signs[1][b])))
        return common, agree if signed else None

    def jaccard(self, other: Region) -> float:
        """|A ∩ B| / |A ∪ B|; 0 for two empty regions."""
        common, _ = self.overlap(other)
        union = self.count + other.count - common
        return common / union if union else 0.0

    def counts(self) -> dict[str, int]:
        """Positions per parameter name."""
        return {name: len(p) for name, p in self.positions.items()}

    def save(self, path: str | Path) -> None:
        """Write the region file; it appears whole or not at all."""
        metadata = {
            "format": FORMAT,
            "percent": self.percent or "",
            "count": str(self.count),
            "total": str(self.total),
            "threshold": "" if self.threshold is None else repr(self.threshold),
            "base": self.base,
            "tuned": self.tuned,
            "shapes": json.dumps({n: list(self.shapes[n]) for n in sorted(self.positions) if n in self.shapes}),
        }
        if self.statistics:
            metadata["statistics"] = json.dumps(dict(self.statistics))
        if self.negative is not None and self.count // 6 < _SIGN_LIMIT:
            bits = np.concatenate([self.negative[n] for n in sorted(self.positions)] or [np.empty(0, np.bool_)])
            metadata["negative"] = base64.b64encode(np.packbits(bits).tobytes()).decode()
        write_arrays(Path(path), {n: self.positions[n] for n in sorted(self.positions)}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Region:
        """Open a region file, or the one in a folder, by memory map.

        Raises :class:`CpiftError` where it is damaged or of another format.
        """
        path = Path(path) / REGION_FILE if Path(path).is_dir() else Path(path)
        tensors, metadata = read_header_and_metadata(path)
        if metadata.get("format") != FORMAT:
            raise CpiftError(f"{path}: not a region file (format {FORMAT}); cpift identify makes one")
        try:
            shapes = {n: tuple(int(d) for d in s) for n, s in json.loads(metadata.get("shapes", "{}")).items()}
            statistics = json.loads(metadata.get("statistics", "{}"))
            count, total = int(metadata["count"]), int(metadata["total"])
            threshold = float(metadata["threshold"]) if metadata.get("threshold") else None
            packed = base64.b64decode(metadata["negative"], validate=True) if "negative" in metadata else None
            if not 0 <= count <= total or not isinstance(statistics, dict) or math.isnan(threshold or 0.0):
                raise ValueError("count, total, threshold or statistics cannot be")
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CpiftError(f"{path}: damaged metadata ({error})") from error
        positions: dict[str, np.ndarray] = {}
        data = np.memmap(path, mode="r", dtype=np.uint8)
        for name in sorted(tensors):
            t = tensors[name]
            if t.dtype not in ("I32", "I64") or len(t.shape) != 1:
                raise CpiftError(f"{path}: {name} is not a 1-D tensor of int32 or int64")
            positions[name] = np.asarray(data[t.begin : t.end]).view(t.numpy_dtype)
            limit = math.prod(shapes[name]) if name in shapes else None
            _check_positions(path, name, positions[name], limit)
        if count != sum(len(p) for p in positions.values()):
            raise CpiftError(f"{path}: holds {sum(map(len, positions.values()))} positions, its header says {count}")
        negative = None
        if packed is not None:
            if len(packed) != (count + 7) // 8:
                raise CpiftError(f"{path}: damaged metadata (signs of {len(packed)} bytes)")
            negative = _Signs(np.frombuffer(packed, np.uint8), {n: len(p) for n, p in positions.items()})
        percent = metadata.get("percent") or None
        base, tuned = metadata.get("base", ""), metadata.get("tuned", "")
        return cls(positions, total, negative, shapes, percent, threshold, base, tuned, statistics)


class _Signs(Mapping[str, np.ndarray]):
    """Packed sign bits of a loaded region, unpacked parameter by parameter."""

    def __init__(self, packed: np.ndarray, lengths: Mapping[str, int]) -> None:
        self._packed, self._lengths, self._starts, start = packed, lengths, {}, 0
        for name, length in lengths.items():
            self._starts[name] = start
            start += length

    def __getitem__(self, name: str) -> np.ndarray:
        start, length = self._starts[name], self._lengths[name]
        first = start // 8
        bits = np.unpackbits(self._packed[first : (start + length + 7) // 8])
        return bits[start - 8 * first : start - 8 * first + length].view(np.bool_)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lengths)

    def __len__(self) -> int:
        return len(self._lengths)


def _check_positions(path: Path, name: str, positions: np.ndarray, limit: int | None) -> None:
    ordered = len(positions) > 0 and positions[0] >= 0
    for start in range(0, len(positions), WINDOW):
        part = positions[start : start + WINDOW + 1]
        ordered = ordered and bool(np.all(part[1:] > part[:-1]))
    if not ordered or (limit is not None and positions[-1] >= limit):
        raise CpiftError(f"{path}: the positions of {name} are not sorted positions of that parameter; it is damaged")


def _same_base(a: Region, b: Region) -> None:
    if a.base and b.base and a.base != b.base:
        raise CpiftError(f"regions of different bases ({a.base[:12]} and {b.base[:12]}) cannot be compared or joined")


def _windows(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Slices of two sorted arrays that fall in the same window of positions, where both have any."""
    end = min(int(a[-1]), int(b[-1])) + 1
    for low in range(max(int(a[0]), int(b[0])) // WINDOW * WINDOW, end, WINDOW):
        left, right = _within(a, low), _within(b, low)
        if left.start < left.stop and right.start < right.stop:
            yield left, right


def _within(sorted_positions: np.ndarray, low: int) -> slice:
    kind = sorted_positions.dtype.type  # of the same type, or searchsorted would convert the whole array
    start = np.searchsorted(sorted_positions, kind(low))
    return slice(int(start), int(np.searchsorted(sorted_positions, kind(low + WINDOW - 1), side="right")))


def merged(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The different elements of several sorted arrays, sorted. numpy's own unique hashes them, forty times slower."""
    if len(parts) == 1:
        return parts[0]
    joined = np.concatenate(parts)
    joined.sort(kind="stable")  # finds the sorted runs and merges them
    new = np.ones(len(joined), np.bool_)
    np.not_equal(joined[1:], joined[:-1], out=new[1:])
    return joined[new]


def _member(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each of the sorted ``a``: does it stand in the sorted ``b``?"""
    if not len(b):
        return np.zeros(len(a), np.bool_)
    place = np.minimum(np.searchsorted(b, a), len(b) - 1)
    return np.asarray(b[place] == a)
