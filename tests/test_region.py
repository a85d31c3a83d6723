"""Regions as sets, and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cpift.errors import CpiftError
from cpift.method.region import Region

Cells = dict[tuple[str, int], bool]  # position: is the update below zero?


def region(cells: Cells, base: str = "b") -> Region:
    """A region of these cells, with signs."""
    names = sorted({name for name, _ in cells})
    positions = {n: np.array(sorted(i for m, i in cells if m == n), np.int32) for n in names}
    negative = {n: np.array([cells[n, int(i)] for i in positions[n]], bool) for n in names}
    return Region(positions, 1000, negative, base=base, percent="1", threshold=0.5)


def cells(made: Region) -> set[tuple[str, int]]:
    return {(name, int(i)) for name, positions in made.positions.items() for i in positions}


ANY = st.dictionaries(
    st.tuples(st.sampled_from("xyz"), st.one_of(st.integers(0, 30), st.integers(0, 2**31 - 1))),
    st.booleans(),
    max_size=40,
)


@settings(deadline=None)
@given(a=ANY, b=ANY)
def test_algebra_and_overlap_are_those_of_sets(a: Cells, b: Cells) -> None:
    """Union, intersection, difference, Jaccard and sign agreement, at positions near and far."""
    left, right = region(a), region(b)
    assert cells(left | right) == set(a) | set(b)
    assert cells(left & right) == set(a) & set(b)
    assert cells(left - right) == set(a) - set(b)
    common = set(a) & set(b)
    assert left.overlap(right) == (len(common), sum(a[c] == b[c] for c in common))
    assert left.jaccard(right) == pytest.approx(len(common) / len(set(a) | set(b)) if a or b else 0.0)


@settings(deadline=None, max_examples=30)
@given(a=ANY, b=ANY)
def test_a_saved_region_is_the_same_when_loaded(tmp_path_factory: pytest.TempPathFactory, a: Cells, b: Cells) -> None:
    """Positions, signs, counts; the overlap of two loaded regions, too."""
    folder = tmp_path_factory.mktemp("r")
    made = []
    for name, one in (("a", region(a)), ("b", region(b))):
        one.save(folder / name)
        made.append(Region.load(folder / name))
        assert cells(made[-1]) == cells(one)
        assert (made[-1].count, made[-1].total, made[-1].percent, made[-1].threshold) == (one.count, 1000, "1", 0.5)
    assert made[0].overlap(made[1]) == region(a).overlap(region(b))


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    """Read by the safetensors library: sorted 1-D int32 under the parameters' names, and the metadata; nothing else."""
    region({("w", 5): True, ("w", 2): False, ("v", 0): True}).save(tmp_path / "r.safetensors")
    stored = load_file(tmp_path / "r.safetensors")
    assert {name: array.tolist() for name, array in stored.items()} == {"v": [0], "w": [2, 5]}
    assert all(array.dtype == np.int32 and array.ndim == 1 for array in stored.values())
    with safe_open(tmp_path / "r.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "cpift.region/1"
    assert (metadata["percent"], metadata["count"], metadata["total"], metadata["threshold"]) == (
        "1",
        "3",
        "1000",
        "0.5",
    )
    assert (metadata["base"], metadata["tuned"]) == ("b", "")


PLAIN = {
    "format": "cpift.region/1",
    "percent": "1",
    "count": "2",
    "total": "9",
    "threshold": "0.5",
    "base": "b",
    "tuned": "t",
}


def test_a_file_by_another_writer_loads(tmp_path: Path) -> None:
    """Only the documented metadata: the overlap is known, the signs are not."""
    save_file({"w": np.array([1, 4], np.int32)}, tmp_path / "r", metadata=PLAIN)
    found = Region.load(tmp_path / "r")
    assert cells(found) == {("w", 1), ("w", 4)}
    assert found.overlap(found) == (2, None)


@pytest.mark.parametrize(
    ("positions", "changes"),
    [
        (np.array([4, 1], np.int32), {}),
        (np.array([1, 1], np.int32), {}),
        (np.array([-1, 1], np.int32), {}),
        (np.array([1, 4], np.float32), {}),
        (np.array([[1, 4]], np.int32), {}),
        (np.array([1, 4], np.int32), {"count": "3"}),
        (np.array([1, 4], np.int32), {"count": "x"}),
        (np.array([1, 4], np.int32), {"format": "other/1"}),
        (np.array([1, 4], np.int32), {"shapes": json.dumps({"w": [2, 2]})}),
        (np.array([1, 4], np.int32), {"shapes": "[[["}),
        (np.array([1, 4], np.int32), {"negative": "not base64"}),
        (np.array([1, 4], np.int32), {"negative": "AAAA"}),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, positions: Any, changes: dict[str, str]) -> None:
    """Unsorted, doubled, negative or far positions, another type or rank, metadata that lies: the file is named."""
    save_file({"w": positions}, tmp_path / "r.safetensors", metadata={**PLAIN, **changes})
    with pytest.raises(CpiftError, match=r"r\.safetensors"):
        Region.load(tmp_path / "r.safetensors")


def test_regions_of_different_bases_do_not_mix() -> None:
    """Neither joined nor compared."""
    a, b = region({("w", 1): True}, base="one"), region({("w", 1): True}, base="two")
    for mix in (lambda: a | b, lambda: a & b, lambda: a - b, lambda: a.jaccard(b)):
        with pytest.raises(CpiftError, match="different bases"):
            mix()


def test_the_complement_is_all_else() -> None:
    """Of every parameter, those without a core position included; a shape that does not fit is refused."""
    region = Region({"a": np.array([0, 3], np.int32), "b": np.array([0, 1], np.int32)}, 9, shapes={"a": (2, 2)})
    found = region.complement({"a": (2, 2), "b": (2,), "c": (3,)})
    assert {n: p.tolist() for n, p in found.positions.items()} == {"a": [1, 2], "c": [0, 1, 2]}
    assert found.total == 9
    with pytest.raises(CpiftError, match="a has no parameter of the same name and shape"):
        region.complement({"a": (4,), "b": (2,)})
    with pytest.raises(CpiftError, match="b has no parameter"):
        region.complement({"a": (2, 2)})


def test_without_takes_positions_away_whichever_checkpoints_they_are_of() -> None:
    own = Region(
        {"a": np.array([1, 3, 5], np.int32)}, 10, shapes={"a": (10,)}, base="one", tuned="x", statistics={"k": 1}
    )
    other = Region({"a": np.array([3, 4], np.int32)}, 10, shapes={"a": (10,)}, base="two")
    left = own.without(other)
    assert left.positions["a"].tolist() == [1, 5]
    assert (left.base, left.tuned, left.statistics) == ("one", "x", {"k": 1})
    assert own.without(Region({"a": np.array([2], np.int32)}, 10, shapes={"a": (10,)}, base="two")) is own
