"""The k largest of a stream of scores, exactly, in memory that does not grow with k beyond the positions themselves.

The bits of a non-negative float order as the float does. One read counts their upper 16 bits, one the lower 15 of those
that share the upper bits of the k-th largest, and one collects. :mod:`cpift.method.identify` needs one read, and
memory for 2k candidates: right for a few per cent of a model, too much for most of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cpift.checkpoint.stream import BLOCK, Block
from cpift.errors import CpiftError
from cpift.kernels.threads import ordered_map
from cpift.method.candidates import INFINITE, cut, value_of

Shape = tuple[int, ...]
Read = Callable[[Block], np.ndarray]
"""Scores of a block, float32 (n,); a score's size is what counts, its sign that of the update."""


@dataclass(frozen=True)
class Selected:
    """The chosen positions.

    Attributes:
        positions: parameter to sorted positions, int32 (int64 from 2**31 elements on), never empty.
        negative: parameter to bool array beside ``positions``: the score's sign.
        threshold: the smallest score chosen; None where nothing is.
        zeros: number of scores that are zero, by parameter.
    """

    positions: dict[str, np.ndarray]
    negative: dict[str, np.ndarray]
    threshold: float | None
    zeros: Counter[str]

    @property
    def count(self) -> int:
        """Number of positions."""
        return sum(map(len, self.positions.values()))


def top_elements(shapes: Mapping[str, Shape], read: Read, count: int, threads: int | None = None) -> Selected:
    """The ``count`` elements of the largest scores; ties by name (plain string order), then by position.

    Args:
        shapes: of the parameters, in the order of their names.
        read: gives the scores; called three times for each block.
        count: k.
        threads: worker threads, by default one a core; changes speed only.

    Raises:
        CpiftError: a score is NaN or infinite.
    """
    upper, zeros = np.zeros(2**16, np.int64), Counter[str]()

    def first(block: Block) -> tuple[np.ndarray, int]:
        keys = _keys(block, read)
        return np.bincount(keys >> 15, minlength=2**16), len(keys) - int(np.count_nonzero(keys))

    for block, (histogram, empty) in ordered_map(first, _blocks(shapes), threads):
        upper += histogram
        zeros[block.name] += empty
    if not count:
        return Selected({}, {}, None, zeros)
    high, rest = cut(upper, count)
    lower = np.zeros(2**15, np.int64)

    def second(block: Block) -> np.ndarray:
        keys = _keys(block, read)
        return np.bincount(keys[keys >> 15 == high] & 0x7FFF, minlength=2**15)

    for _, histogram in ordered_map(second, _blocks(shapes), threads):
        lower += histogram
    low, ties = cut(lower, rest)
    least = (high << 15) | low

    def third(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores = read(block)
        keys = np.abs(scores).view(np.uint32)
        at = np.flatnonzero(keys >= least)
        return at, np.signbit(scores[at]), keys[at] == least

    positions: dict[str, list[np.ndarray]] = {}
    negative: dict[str, list[np.ndarray]] = {}
    for block, (at, minus, equal) in ordered_map(third, _blocks(shapes), threads):
        kept = ~equal | (np.cumsum(equal) <= ties)
        ties -= int(np.count_nonzero(equal & kept))
        if kept.any():
            positions.setdefault(block.name, []).append((at[kept] + block.start).astype(_kind(shapes[block.name])))
            negative.setdefault(block.name, []).append(minus[kept])
    return Selected(_joined(positions), _joined(negative), value_of(least), zeros)


def top_columns(shapes: Mapping[str, Shape], read: Read, count: int, threads: int | None = None) -> Selected:
    """The columns of the largest mean scores, whole, as long as they have at most ``count`` elements together.

    A column is what shares the last index of a matrix, of one matrix where several are stacked: the weights of one
    input of a linear map (of one output in GPT-2's, which are stored the other way round). An element of a vector is a
    column of its own. Ties by name, then by position. The first column that would exceed ``count`` ends the selection.

    Args:
        shapes: of the parameters, in the order of their names.
        read: gives the scores; called once for each block.
        count: k.
        threads: worker threads, by default one a core; changes speed only.

    Raises:
        CpiftError: a score is NaN or infinite.
    """
    sums = {name: np.zeros(_columns(shape)) for name, shape in shapes.items()}
    zeros = Counter[str]()

    def work(block: Block) -> tuple[np.ndarray, int]:
        scores = np.abs(_checked(block, read(block))).astype(np.float64)
        wide = sums[block.name].shape[1]
        return scores.reshape(-1, wide).sum(axis=0), len(scores) - int(np.count_nonzero(scores))

    for block, (part, empty) in ordered_map(work, _rows(shapes), threads):
        matrix = block.start // (_length(shapes[block.name]) * len(part))
        sums[block.name][matrix] += part
        zeros[block.name] += empty
    means = np.concatenate([sums[name].ravel() / _length(shapes[name]) for name in sums] or [np.empty(0)])
    lengths = np.concatenate([np.full(sums[name].size, _length(shapes[name])) for name in sums] or [np.empty(0)])
    order = np.argsort(-means, kind="stable")
    taken = order[: int(np.searchsorted(np.cumsum(lengths[order]), count, side="right"))]
    chosen = np.zeros(len(means), np.bool_)
    chosen[taken] = True
    positions, start = {}, 0
    for name, columns in sums.items():
        here = chosen[start : start + columns.size].reshape(columns.shape)
        start += columns.size
        if here.any():
            positions[name] = _positions(shapes[name], here)
    threshold = float(means[taken[-1]]) if len(taken) else None
    return Selected(positions, {}, threshold, zeros)


def _keys(block: Block, read: Read) -> np.ndarray:
    """The bits of the scores' sizes: ordered as these are."""
    keys: np.ndarray = np.abs(_checked(block, read(block))).view(np.uint32)
    return keys


def _checked(block: Block, scores: np.ndarray) -> np.ndarray:
    if len(scores) and int(np.abs(scores).view(np.uint32).max()) >= INFINITE:
        raise CpiftError(
            f"{block.name}: holds NaN or infinite scores; the weights, or the rows' losses, are no numbers"
        )
    return scores


def _blocks(shapes: Mapping[str, Shape]) -> Iterator[Block]:
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64))
        for start in range(0, size, BLOCK):
            yield Block(name, start, min(start + BLOCK, size))


def columns_of(shape: Shape) -> tuple[int, int]:
    """Number of columns of a parameter, of all its matrices, and the elements of each."""
    matrices, wide = _columns(shape)
    return matrices * wide, _length(shape)


def column_positions(shape: Shape, columns: np.ndarray) -> np.ndarray:
    """Sorted row-major positions of some columns, given by their numbers below ``columns_of(shape)[0]``."""
    chosen = np.zeros(_columns(shape), np.bool_)
    chosen.ravel()[columns] = True
    return _positions(shape, chosen)


def _columns(shape: Shape) -> tuple[int, int]:
    """Number of stacked matrices, and columns of each; the elements of a vector are the columns of one matrix."""
    return int(np.prod(shape[:-2], dtype=np.int64)), shape[-1] if shape else 1


def _length(shape: Shape) -> int:
    """Elements of a column."""
    return shape[-2] if len(shape) > 1 else 1


def _rows(shapes: Mapping[str, Shape]) -> Iterator[Block]:
    """Blocks of whole rows, of one matrix each."""
    for name, shape in shapes.items():
        matrices, wide = _columns(shape)
        step, size = max(1, BLOCK // wide) * wide, _length(shape) * wide
        for first in range(0, matrices * size, size):
            for start in range(first, first + size, step):
                yield Block(name, start, min(start + step, first + size))


def _positions(shape: Shape, chosen: np.ndarray) -> np.ndarray:
    """Row-major positions of whole columns; chosen: bool (matrices, columns)."""
    kind, length, wide = _kind(shape), _length(shape), chosen.shape[1]
    parts = []
    for matrix, columns in enumerate(chosen):
        rows = matrix * length * wide + np.arange(length, dtype=np.int64)[:, None] * wide
        parts.append((rows + np.flatnonzero(columns)).ravel().astype(kind))
    return np.concatenate(parts)


def _kind(shape: Shape) -> type[np.integer]:
    return np.int32 if np.prod(shape, dtype=np.int64) < 2**31 else np.int64


def _joined(parts: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Pieces of each parameter as one array; let go of one by one."""
    return {name: np.concatenate(parts.pop(name)) for name in list(parts)}
