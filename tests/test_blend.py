"""What ``cpi_ft_sequential`` of a comparison fuses with: the recipe's settings, and cores that stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpift.compare.workbench import Work
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe
from cpift.runs.stage import ModelRef, Run

NAME = "model.layers.0.mlp.up_proj.weight"


def work(folder: Path, **changes: Any) -> Work:
    """A bench without a model: cores of two tasks, which share position 3."""
    tasks = {task: {"train": f"{task}.jsonl", "eval": 1} for task in ("old", "new")}
    bench = object.__new__(Work)
    bench.run = Run(Recipe.parse({"model": "m", "tasks": tasks, **changes}), folder)
    for task, positions in (("old", [1, 3, 5]), ("new", [2, 3])):
        file = bench.run.layout.region(task)
        file.parent.mkdir(parents=True)
        Region({NAME: np.array(positions, np.int32)}, 10, shapes={NAME: (2, 5)}, base=f"base of {task}").save(file)
    return bench


def test_a_new_core_leaves_earlier_cores_alone(tmp_path: Path) -> None:
    core = work(tmp_path)._core_without("new", ["old"])
    assert core.positions[NAME].tolist() == [2]
    assert core.base == "base of new"


@pytest.mark.parametrize(("overlap", "kept"), [("largest", ("old",)), ("order", ())])
def test_the_recipes_fusion_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str, kept: tuple[str, ...]
) -> None:
    given: dict[str, Any] = {}

    def fuse(self: Work, *positional: Any, **options: Any) -> ModelRef:
        given.update(options, kept=positional[-1])
        return ModelRef(tmp_path)

    monkeypatch.setattr(Work, "_fuse", fuse)
    bench = work(tmp_path, fuse={"space": "updates", "interpolation": "linear", "overlap": overlap, "weight": 0.75})
    bench.blend("x", "new", ModelRef(tmp_path), ModelRef(tmp_path), ["old"])
    assert given["kept"] == kept
    assert (given["space"], given["interpolation"], given["weight"]) == ("updates", "linear", 0.75)
    assert given.get("overlap", "largest") == overlap
