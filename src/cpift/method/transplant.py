"""Core values in their place: the positions of regions within a block, and who wins where several claim one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from cpift.checkpoint.stream import Block, Checkpoint, native
from cpift.kernels.loops import as_float64
from cpift.method.region import Region, merged

Overlap = Literal["largest", "order", "mean"]


def core_positions(regions: Mapping[str, Region], tasks: Iterable[str], block: Block) -> list[np.ndarray | None]:
    """For each task, its core positions within the block, counted from the block's start."""
    found: list[np.ndarray | None] = []
    for task in tasks:
        region = regions.get(task)
        positions = region.positions.get(block.name) if region else None
        if positions is not None:
            edges = np.searchsorted(positions, np.array([block.start, block.stop], positions.dtype))
            positions = positions[edges[0] : edges[1]].astype(np.int64) - block.start
        found.append(positions if positions is not None and len(positions) else None)
    return found


def transplant(
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    regions: Mapping[str, Region],
    block: Block,
    overlap: Overlap,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Core positions in the block, int64 (n,), the value that stands at each, float64 (n,), and counts, int64 (N + 1,).

    The counts: positions that each task has won, and those that more than one had claimed.
    """
    wins = np.zeros(len(tasks) + 1, np.int64)
    cores = core_positions(regions, tasks, block)
    present = [c for c in cores if c is not None]
    if not present:
        return np.empty(0, np.int64), np.empty(0), wins
    positions = merged(present)
    best = np.full(len(positions), -1.0)
    owner = np.full(len(positions), -1)
    chosen, claims = np.zeros(len(positions)), np.zeros(len(positions))
    origin = values_at(base, block, positions)
    for i, (core, model) in enumerate(zip(cores, tasks.values(), strict=True)):
        if core is None:
            continue
        place = np.searchsorted(positions, core)
        theirs = values_at(model, block, core)
        claims[place] += 1
        if overlap == "mean":
            chosen[place] += theirs
            wins[i] += len(core)
            continue
        size = np.abs(theirs.astype(np.float32) - origin[place].astype(np.float32)).astype(np.float64)
        better = size > best[place] if overlap == "largest" else np.ones(len(core), np.bool_)
        best[place[better]], chosen[place[better]], owner[place[better]] = size[better], theirs[better], i
    if overlap == "mean":
        chosen /= claims
    else:
        wins[:-1] = np.bincount(owner, minlength=len(tasks))
    wins[-1] = np.count_nonzero(claims > 1)
    return positions, chosen, wins


def values_at(model: Checkpoint, block: Block, positions: np.ndarray) -> np.ndarray:
    """Stored elements of the block at these positions, as float64."""
    picked = np.ascontiguousarray(model.raw(*block)[positions])
    out = np.empty(len(picked))
    as_float64(native(picked), out)
    return out
