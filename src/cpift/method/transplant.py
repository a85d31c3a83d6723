"""Core values in their place: the positions of regions within a block, and who wins where several claim one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from cpift.checkpoint.stream import Block, Checkpoint, native
from cpift.kernels.lazy import compiled
from cpift.kernels.threads import thread_local_scratch
from cpift.method.overlap_rules import Claims, OverlapRule
from cpift.method.region import Region

_gather_core, _as_float64 = compiled("gather_core"), compiled("as_float64")


class Cores:
    """Core positions of all tasks within a block, as the kernels take them.

    Attributes:
        table: addresses of each task's sorted positions, their item sizes and their numbers, three int64 arrays (N,).
        start: position of the block's first element.
        most: sum of the numbers.
    """

    def __init__(self, regions: Mapping[str, Region], tasks: Iterable[str], block: Block) -> None:
        none = np.empty(0, np.int32)
        slices = [none if positions is None else positions for positions in _slices(regions, tasks, block)]
        self._slices = slices  # kept alive: the kernels see addresses alone
        self.table = (
            np.array([part.ctypes.data for part in slices], np.int64),
            np.array([part.itemsize for part in slices], np.int64),
            np.array([len(part) for part in slices], np.int64),
        )
        self.start = block.start
        self.most = int(self.table[2].sum())


def core_positions(regions: Mapping[str, Region], tasks: Iterable[str], block: Block) -> list[np.ndarray | None]:
    """Core positions within a block.

    Args:
        regions: core regions by task.
        tasks: names; one without a region has no core positions.
        block: where to look.

    Returns:
        For each task its sorted positions, int64, counted from the block's start; None where it has none.
    """
    slices = _slices(regions, tasks, block)
    return [None if positions is None else positions.astype(np.int64) - block.start for positions in slices]


def _slices(regions: Mapping[str, Region], tasks: Iterable[str], block: Block) -> list[np.ndarray | None]:
    """For each task, the part of its region's positions that lies in the block; None without any."""
    slices: list[np.ndarray | None] = []
    for task in tasks:
        region = regions.get(task)
        positions = region.positions.get(block.name) if region else None
        if positions is not None:
            if positions.dtype not in (np.int32, np.int64):
                positions = positions.astype(np.int64)
            edges = np.searchsorted(positions, np.array([block.start, block.stop], positions.dtype))
            positions = np.ascontiguousarray(positions[edges[0] : edges[1]])
        slices.append(positions if positions is not None and len(positions) else None)
    return slices


def transplant(
    cores: Cores, addresses: np.ndarray, itemsizes: np.ndarray, rule: OverlapRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What stands at the core positions of a block.

    Args:
        cores: the positions of all tasks.
        addresses: int64 (1 + N,), where the block's stored elements of θ⁰ and of each task begin; of a task without
            core positions here any.
        itemsizes: int64 (1 + N,), of one element.
        rule: decides where several tasks claim one position.

    Returns:
        Core positions in the block, int64 (n,), in no order; the value at each, float64 (n,); both valid until this
        thread's next call; and counts, int64 (N + 1,): of the positions that each task has won, and of those that more
        than one had claimed.
    """
    tasks, most = len(cores.table[2]), cores.most
    counts = np.zeros(tasks + 1, np.int64)
    positions = thread_local_scratch("core positions", most, np.int64)
    values = thread_local_scratch("core values", most, np.float64)
    several = most // 2  # of a position that several claim there are two at least
    contested = thread_local_scratch("contested", several, np.int64)
    claimed = thread_local_scratch("claimed", tasks * several, np.bool_).reshape(tasks, several)
    claims = thread_local_scratch("claims", tasks * several, np.float64).reshape(tasks, several)
    sizes = thread_local_scratch("sizes", tasks * several, np.float32).reshape(tasks, several)
    if most:
        n, c = _gather_core(
            addresses,
            itemsizes,
            *cores.table,
            cores.start,
            positions,
            values,
            counts,
            contested,
            claimed,
            claims,
            sizes,
        )
        positions, values = positions[:n], values[:n]
        if c:
            decision = rule.decide(Claims(claimed[:, :c], claims[:, :c], sizes[:, :c]))
            values[contested[:c]] = decision.values
            counts[:-1] += decision.winners.sum(axis=1)
            counts[-1] = c
    return positions, values, counts


def values_at(model: Checkpoint, block: Block, positions: np.ndarray) -> np.ndarray:
    """Stored elements at positions of a block.

    Args:
        model: the checkpoint.
        block: where to look.
        positions: int64 (n,), counted from the block's start.

    Returns:
        The values, float64 (n,).
    """
    picked = np.ascontiguousarray(model.raw(*block)[positions])
    out = np.empty(len(picked))
    _as_float64(native(picked), out)
    return out
