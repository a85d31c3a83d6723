"""Memory that does not grow with the model: diff, and making, applying and removing a patch."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write

from cpift.checkpoint.stream import BLOCK
from cpift.method.apply_patch import apply_patches, remove_patches
from cpift.method.compare_updates import compare_updates
from cpift.method.patch import make_patch


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and numpy held at once, beyond those before."""
    tracemalloc.start()
    work()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 5 and of 15 blocks: a base and two models that differ from it at a thousand positions of their own."""
    place = tmp_path_factory.mktemp("flat")
    for size in ("small", "large"):
        count = (5 if size == "small" else 15) * BLOCK
        for i, name in enumerate(("base", "a", "b")):
            weight = np.ones(count, np.float32)
            if i:
                weight[i : 1000 * 1024 : 1024] += 0.5 + np.arange(1000, dtype=np.float32)
            write(place / size / name, {"w": weight}, config={})
    return place


WORK: dict[str, Callable[[Path], object]] = {
    "diff": lambda place: compare_updates(
        place / "base", {name: place / name for name in "ab"}, f"{100e3 / (place / 'a/model.safetensors').stat().st_size}",
        threads=1,
    ),
    "make": lambda place: make_patch(place / "base", place / "a", place / "a.patch", name="a", threads=1),
    "apply": lambda place: apply_patches(place / "base", [place / "a.patch"], place / "on", threads=1),
    "remove": lambda place: remove_patches(place / "on", ["a"], place / "off", threads=1),
}  # fmt: skip


def test_it_is_that_of_a_few_blocks_whatever_the_size_of_the_model(models: Path) -> None:
    for name, work in WORK.items():
        small, large = (peak(partial(work, models / size)) for size in ("small", "large"))
        assert large < small + BLOCK, (name, small, large)
        assert large < 15 * 4 * BLOCK, (name, large)  # less than one of the models
    assert (models / "large/off/model.safetensors").read_bytes() == (
        models / "large/base/model.safetensors"
    ).read_bytes()
