"""A process of several that is killed: the others stop, and started again the run ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import yaml
from ranks import MOMENTS, kill_ranks, unbroken


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of two tasks."""
    place = tmp_path_factory.mktemp("pair")
    (place / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(place, ("reverse", "upper")), sort_keys=False))
    return place / "r.yaml"


@pytest.mark.long  # a process that dies is in distributed/test_run.py
def test_a_killed_rank(pair: Path, tmp_path: Path) -> None:
    """The first process, which writes, in the refinement: the same weights, bit for bit. ``make soak`` kills each, in four stages."""
    whole = unbroken(pair, tmp_path / "whole")
    assert kill_ranks(pair, whole, tmp_path / "out", [(0, MOMENTS[2])]) == 1
