"""Core values in their place: the positions of regions within a block, and who wins where several claim one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from cpift.checkpoint.stream import Block, Checkpoint, native
from cpift.kernels.loops import as_float64
from cpift.method.overlap_rules import Claims, OverlapRule
from cpift.method.region import Region, merged


def core_positions(regions: Mapping[str, Region], tasks: Iterable[str], block: Block) -> list[np.ndarray | None]:
    """For each task, its core positions within the block, counted from the block's start."""
    cores: list[np.ndarray | None] = []
    for task in tasks:
        region = regions.get(task)
        positions = region.positions.get(block.name) if region else None
        if positions is not None:
            edges = np.searchsorted(positions, np.array([block.start, block.stop], positions.dtype))
            positions = positions[edges[0] : edges[1]].astype(np.int64) - block.start
        cores.append(positions if positions is not None and len(positions) else None)
    return cores


def transplant(
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    regions: Mapping[str, Region],
    block: Block,
    rule: OverlapRule,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What stands at the core positions of a block.

    Args:
        base: θ⁰.
        tasks: the fine-tuned checkpoints by task.
        regions: core region of each task that has one.
        block: a part of one tensor.
        rule: decides where several tasks claim one position.

    Returns:
        Core positions in the block, int64 (n,); the value at each, float64 (n,); and counts, int64 (N + 1,): of the
        positions that each task has won, and of those that more than one had claimed.
    """
    cores = core_positions(regions, tasks, block)
    present = [c for c in cores if c is not None]
    if not present:
        return np.empty(0, np.int64), np.empty(0), np.zeros(len(tasks) + 1, np.int64)
    positions = merged(present)
    claimed = np.zeros((len(tasks), len(positions)), np.bool_)
    values, sizes = np.zeros(claimed.shape), np.full(claimed.shape, -1.0, np.float32)
    origin = values_at(base, block, positions).astype(np.float32)
    for i, (core, model) in enumerate(zip(cores, tasks.values(), strict=True)):
        if core is None:
            continue
        place = np.searchsorted(positions, core)
        claimed[i, place] = True
        values[i, place] = theirs = values_at(model, block, core)
        sizes[i, place] = np.abs(theirs.astype(np.float32) - origin[place])
    decision = rule.decide(Claims(claimed, values, sizes))
    contested = np.count_nonzero(claimed.sum(axis=0) > 1)
    return positions, decision.values, np.append(decision.winners.sum(axis=1), contested)


def values_at(model: Checkpoint, block: Block, positions: np.ndarray) -> np.ndarray:
    """Stored elements of the block at these positions, as float64."""
    picked = np.ascontiguousarray(model.raw(*block)[positions])
    out = np.empty(len(picked))
    as_float64(native(picked), out)
    return out
