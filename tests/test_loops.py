"""Selection in numpy, for small models, beside the compiled loops: the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write

from cpift.kernels import loops
from cpift.method.compare_updates import Comparison, compare_updates
from cpift.method.identify import identify
from cpift.method.region import Region

PLAIN, COMPILED = loops.loops_for(-1), loops.loops_for(0)  # the tests set loops.FEW to -1


def stored(rng: np.random.Generator, size: int, kind: type) -> np.ndarray:
    """Elements as they are stored, some of them equal to their neighbours, some huge, some zero of either sign."""
    values = rng.standard_normal(size) * 10.0 ** rng.integers(-40, 38, size)
    values[rng.random(size) < 0.2] = 0.0
    values[rng.random(size) < 0.1] = -0.0
    if kind is np.uint16:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(kind)


KINDS = [(np.uint16, np.uint16), (np.float32, np.float32), (np.float64, np.float32), (np.uint16, np.float64)]


def addressed(*parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Addresses and sizes of elements, as the loops take them."""
    return np.array([part.ctypes.data for part in parts]), np.array([part.itemsize for part in parts])


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("bounds", [(-1, 0), (0x3F800000, 0x7F800000 - 1)])
@pytest.mark.filterwarnings("ignore:overflow")
def test_updates_are_collected_alike(kinds: tuple[type, type], bounds: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    size = 5000  # no multiple of the compiled loop's strips
    base, other = stored(rng, size, kinds[0]), stored(rng, size, kinds[1])
    again = base if kinds[0] is kinds[1] else stored(rng, size, kinds[1])
    tuned = np.where(rng.random(size) < 0.5, again, other)
    results = []
    for made in (PLAIN, COMPILED):
        candidates, samples = np.zeros((2, size + 7), np.uint64), np.zeros((2, 2**16), np.int64)
        found, zeros = np.array([0, 7]), np.array([0, 1])
        places = addressed(base, other, tuned)
        made.scan(*places, size, 1000, np.array(bounds), candidates, found, zeros, samples, 64)
        entries = [candidates[0, : found[0]].tobytes(), candidates[1, 7 : found[1]].tobytes()]
        results.append((found.tolist(), zeros.tolist(), entries, samples.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("ties", [0, 1, 5, 10**6])
@pytest.mark.parametrize("room", [40, 120, 1000])
def test_candidates_are_taken_in_cut_and_unpacked_alike(ties: int, room: int) -> None:
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 6, 300).astype(np.uint64) << np.uint64(33 + 13)  # many equal, in two bins
    held = keys | (rng.integers(0, 2, 300).astype(np.uint64) << np.uint64(32)) | np.arange(300, dtype=np.uint64)
    results: list[tuple[Any, ...]] = []
    for made in (PLAIN, COMPILED):
        buffer, histogram = np.zeros(room, np.uint64), np.zeros(2**16, np.int64)
        looked_at, filled = made.take_in(held, np.uint64(3 << (33 + 13)), buffer, 10, histogram)
        candidates, lengths = held.copy(), np.array([0, 120, 0, 180])
        left = made.keep_best(candidates, lengths, 3 << 13, ties)
        counts = [np.zeros(2**16, np.int64), np.zeros(2**15, np.int64)]
        made.count_keys(held, -1, counts[0])
        made.count_keys(held, 1, counts[1])
        positions, negative = np.zeros(301, np.int32), np.zeros(301, np.bool_)
        taken = np.array([0, 120, 0, 180])
        made.unpack_best(held, taken, np.array([0, 11, 0, 70]), 3 << 13, ties, positions, negative)
        parts = (buffer[:filled], histogram, candidates[:left], *counts, positions[:left], negative[:left])
        results.append((looked_at, filled, left, lengths.tolist(), taken.tolist(), *(part.tobytes() for part in parts)))
    assert results[0] == results[1]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.filterwarnings("ignore:overflow")
def test_rows_without_an_update_are_counted_alike(kinds: tuple[type, type]) -> None:
    rng = np.random.default_rng(3)
    base = stored(rng, 600, kinds[0])
    tuned = stored(rng, 600, kinds[1])
    if kinds[0] is kinds[1]:
        tuned[:200] = base[:200]
    places = addressed(base, tuned)
    counts = [made.count_unchanged_rows(*places, 60, 10) for made in (PLAIN, COMPILED)]
    assert counts[0] == counts[1] >= (20 if kinds[0] is kinds[1] else 0)


def test_files_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    with (tmp_path / "x").open("rb") as file:
        for made in (PLAIN, COMPILED):
            targets = [np.zeros(20, np.uint8) for _ in range(3)]
            addresses = addressed(*targets)[0]
            descriptors, sizes = np.array([file.fileno(), -1, file.fileno()]), np.array([10, 10, 20])
            assert made.read_into(descriptors, np.array([5, 0, 60]), sizes, addresses) == -1
            assert targets[0][:10].tolist() == list(range(5, 15))
            assert not targets[1].any()
            assert targets[2].tolist() == list(range(60, 80))
            assert made.read_into(descriptors, np.array([5, 0, 90]), sizes, addresses) == 2, "the file ends before"


def test_common_positions_and_products_are_counted_alike() -> None:
    rng = np.random.default_rng(3)
    a, b = (np.sort(rng.choice(500, 200, replace=False)).astype(np.int32) for _ in range(2))
    signs = rng.random(200) < 0.5, rng.random(200) < 0.5
    assert PLAIN.count_common(a, b, *signs) == COMPILED.count_common(a, b, *signs)
    parts = [rng.standard_normal(3000).astype(kind) for kind in (np.float32, np.float64, np.float32)]
    grams = [np.zeros((2, 2)), np.zeros((2, 2))]
    for made, gram in zip((PLAIN, COMPILED), grams, strict=True):
        made.add_update_gram(*addressed(*parts), 3000, gram)
    assert np.allclose(*grams, rtol=1e-12)
    assert grams[0][0, 1] == 0.0


def test_regions_and_comparisons_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    base = {f"layers.{i}.weight": rng.standard_normal((40, 50)).astype(np.float32) for i in range(3)}
    places = [write(tmp_path / "base", base)]
    for seed in (1, 2):
        change = np.random.default_rng(seed)
        tuned = {n: w + np.float32(0.01) * change.integers(-3, 4, w.shape).astype(np.float32) for n, w in base.items()}
        places.append(write(tmp_path / f"t{seed}", tuned))  # many equal updates: ties
    tuned_places = {"a": places[1], "b": places[2]}
    regions: list[dict[str, Region]] = []
    compared: list[Comparison] = []
    for few in (-1, 2**20):
        monkeypatch.setattr(loops, "FEW", few)
        regions.append(identify(places[0], tuned_places, "7", chunk=333))
        compared.append(compare_updates(places[0], tuned_places, "7"))
    for name, region in regions[0].items():
        region.save(tmp_path / "compiled.safetensors")
        regions[1][name].save(tmp_path / "plain.safetensors")
        assert (tmp_path / "compiled.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    cosines = [[pair.cosine for pair in made.pairs] for made in compared]
    assert cosines[0] == pytest.approx(cosines[1], rel=1e-12)
    norms = [[model.norm for model in made.models] for made in compared]
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    same = [
        replace(
            made,
            pairs=[replace(p, cosine=None) for p in made.pairs],
            models=[replace(m, norm=0.0) for m in made.models],
        )
        for made in compared
    ]
    assert same[0] == same[1]
