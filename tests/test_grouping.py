"""Groups are the connected components of the overlaps; their order is shuffled by seed, or given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpift.errors import CpiftError
from cpift.method.group import group
from cpift.method.region import Region

SETS = st.lists(st.sets(st.integers(0, 25), max_size=12), min_size=1, max_size=6)


def regions(sets: list[set[int]]) -> dict[str, Region]:
    return {f"t{i}": Region({"w": np.array(sorted(s), np.int32)} if s else {}, 26) for i, s in enumerate(sets)}


@settings(deadline=None)
@given(sets=SETS, threshold=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), seed=st.integers(0, 5))
def test_groups_are_connected_components(sets: list[set[int]], threshold: float, seed: int) -> None:
    """Two tasks share a group where a chain of overlaps of at least the threshold leads from one to the other."""
    found = group(regions(sets), threshold, seed=seed)
    n = len(sets)
    near = [[len(a & b) / len(a | b) if a | b else 0.0 for b in sets] for a in sets]
    assert all(found.jaccard[i][j] == near[i][j] for i in range(n) for j in range(n))
    reach = np.array([[i == j or near[i][j] >= threshold for j in range(n)] for i in range(n)])
    for _ in range(n):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    expected = {frozenset(f"t{j}" for j in range(n) if reach[i, j]) for i in range(n)}
    assert {frozenset(g) for g in found.groups} == expected
    assert sorted(found.order) == list(range(len(found.groups)))
    assert found.stages == [found.groups[i] for i in found.order]


def test_the_order_is_shuffled_by_seed_and_the_same_for_the_same_seed() -> None:
    """Some seed gives another order; the same seed never does."""
    apart = regions([{i} for i in range(5)])
    assert group(apart, seed=1).order == group(apart, seed=1).order
    assert len({tuple(group(apart, seed=s).order) for s in range(10)}) > 1


def test_given_groups_are_taken_in_their_order() -> None:
    """A list of lists stands for groups and order; it must hold each task once."""
    found = group(regions([{1}, {2}, {3}]), order=[["t2"], ["t0", "t1"]])
    assert found.stages == [["t2"], ["t0", "t1"]]
    for wrong in ([["t0"]], [["t0", "t1"], ["t1", "t2"]], [["t0", "t1", "t2", "t3"]], [["t0", "t1", "t2"], []]):
        with pytest.raises(CpiftError, match=r"group\.order"):
            group(regions([{1}, {2}, {3}]), order=wrong)


def test_signs_are_told_where_known() -> None:
    """The share of common positions with the same sign; None without signs or without overlap."""
    w = np.array([1, 2, 3, 4], np.int32)
    a = Region({"w": w}, 9, {"w": np.array([True, True, False, False])})
    b = Region({"w": w}, 9, {"w": np.array([True, True, True, True])})
    c = Region({"w": np.array([8], np.int32)}, 9, {"w": np.array([True])})
    found = group({"a": a, "b": b, "c": c})
    assert found.sign_agreement[0][1] == 0.5
    assert found.sign_agreement[0][2] is None
