"""The walk over core positions of several tasks beside sets of Python."""

from __future__ import annotations

import numpy as np
import pytest

from cpift.kernels import native

SIZE, START = 20_000, 7_000


@pytest.mark.parametrize("tasks", [1, 2, 3, 300])
def test_each_position_is_found_once_with_all_who_claim_it(tasks: int) -> None:
    """Dense and sparse regions, one empty, beside each other: positions, values, claims and who has won alone."""
    rng = np.random.default_rng(tasks)
    kinds = [(np.float32, np.float64)[i % 2] for i in range(tasks + 1)]
    elements = [rng.standard_normal(SIZE).astype(kind) for kind in kinds]
    shares = [0.0 if i == 1 else (0.3, 0.01)[i % 2] for i in range(tasks)]
    cores = [
        (np.flatnonzero(rng.random(SIZE) < share) + START).astype((np.int32, np.int64)[i % 2])
        for i, share in enumerate(shares)
    ]
    most = sum(map(len, cores))
    table = [np.array(column) for column in zip(*((c.ctypes.data, c.itemsize, len(c)) for c in cores), strict=True)]
    positions, values, won = np.empty(most, np.int64), np.empty(most), np.zeros(tasks, np.int64)
    contested, claimed = np.empty(most // 2, np.int64), np.empty((tasks, most // 2), np.bool_)
    claims, sizes = np.empty((tasks, most // 2)), np.empty((tasks, most // 2), np.float32)
    places = np.array([part.ctypes.data for part in elements]), np.array([part.itemsize for part in elements])
    n, c = native.loop("gather_core")(*places, *table, START, positions, values, won, contested, claimed, claims, sizes)
    claimants: dict[int, list[int]] = {}
    for task, core in enumerate(cores):
        for position in core.tolist():
            claimants.setdefault(position - START, []).append(task)
    assert sorted(positions[:n].tolist()) == sorted(claimants)
    several = {int(positions[at]): slot for slot, at in enumerate(contested[:c])}
    assert set(several) == {position for position, who in claimants.items() if len(who) > 1}
    for at, position in enumerate(positions[:n].tolist()):
        who = claimants[position]
        if len(who) == 1:
            assert values[at] == elements[who[0] + 1][position]
            continue
        slot = several[position]
        assert np.flatnonzero(claimed[:, slot]).tolist() == who
        wanted = np.full(tasks, -1, np.float32)
        for task in who:
            assert claims[task, slot] == elements[task + 1][position]
            wanted[task] = abs(np.float32(elements[task + 1][position]) - elements[0][position])
        np.testing.assert_array_equal(sizes[:, slot], wanted)
    alone = [who[0] for who in claimants.values() if len(who) == 1]
    assert won.tolist() == np.bincount(alone, minlength=tasks).tolist()
