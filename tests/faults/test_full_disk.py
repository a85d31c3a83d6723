"""A disk that fills up in any stage: one line, what was finished stands, and with room again the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from full_disk import STAGES, run_full, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    with small_disk(tmp_path / "disk") as place:
        if place is None:
            pytest.skip("this user may not mount a tmpfs; test_resume.py has the same with a write that fails")
        yield place


# A training, a stage of one file and the end; the others are long, and make soak has them all.
SHORT = ("probe, in its midst", "regions", "model")
CASES = [pytest.param(name, marks=[] if name in SHORT else pytest.mark.long) for name in STAGES]


@pytest.mark.parametrize("name", CASES)
def test_a_full_disk(recipe: Path, whole: Path, disk: Path, tmp_path: Path, name: str) -> None:
    """In each stage."""
    run_full(recipe, whole, disk, tmp_path / "said", name)
