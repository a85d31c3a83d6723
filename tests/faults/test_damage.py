"""What goes wrong within a run: training that diverges, files that rot, inputs that are edited in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage import DAMAGES, DIVERGING, FILES, bad_row, diverge, edited, redo, rot

# The way out is taken where little is made again; elsewhere by the long cases.
REDONE = ("03-group/groups.json", "06-refine/3/model.safetensors", "07-evaluate/fused/upper/score.json")
# Each file with one kind of damage; make soak has them all.
CASES = [
    pytest.param(name, damage, marks=[] if (row - column) % len(DAMAGES) == 0 else pytest.mark.long)
    for row, name in enumerate(FILES)
    for column, damage in enumerate(DAMAGES)
]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_file_that_rots(whole: Path, tmp_path: Path, name: str, damage: str) -> None:
    """Found before it is used, and the stage and the way to redo it are named."""
    rot(whole, tmp_path / "out", name, damage)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(
            name, damage, marks=[] if name in REDONE and (row - column) % len(DAMAGES) == 0 else pytest.mark.long
        )
        for row, name in enumerate(FILES)
        for column, damage in enumerate(DAMAGES)
    ],
)
def test_a_file_that_rots_is_made_again(whole: Path, tmp_path: Path, name: str, damage: str) -> None:
    """The way that is named leads to the same end."""
    redo(whole, rot(whole, tmp_path / "out", name, damage))


@pytest.mark.parametrize(
    ("stage", "kind"), [("06-refine", "diverges"), pytest.param("06-refine", "not a number", marks=pytest.mark.long)]
)
def test_training_that_diverges(whole: Path, tmp_path: Path, stage: str, kind: str) -> None:
    """Stops at once with stage, task, step and what to change; the stage is not marked as done."""
    assert kind in DIVERGING
    diverge(whole, tmp_path / "out", stage, kind)


# Edited rows are in test_redo.py, too.
@pytest.mark.parametrize("name", ["the share that is core", pytest.param("training rows", marks=pytest.mark.long)])
def test_edited_rows_and_recipe(whole: Path, tmp_path: Path, name: str) -> None:
    """What changed is said of each stage, and only what depends on it is made again."""
    edited(whole, tmp_path, name)


@pytest.mark.parametrize(("name", "part"), [("no turn", "train"), ("not JSON", "eval")])
def test_a_bad_row_far_down_in_an_edited_file(whole: Path, tmp_path: Path, name: str, part: str) -> None:
    """Before anything is made, even of other tasks; the run that is there stays whole."""
    bad_row(whole, tmp_path, name, part)
