"""What goes wrong within a run: training that diverges, files that rot, inputs that are edited in between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_run import Listener, copy, same, stamps

from cpift.errors import CpiftError
from cpift.pipeline import run
from cpift.recipe import Recipe

# A file of each kind of stage, and the stages to take away so that it is read again.
FILES = {
    "00-tasks/upper/train.jsonl": ("01-probe/upper",), "00-tasks/upper/eval.jsonl": ("07-evaluate/fused",),
    "01-probe/upper/model.safetensors": ("02-identify",), "02-identify/upper/region.safetensors": ("03-group",),
    "03-group/groups.json": (), "04-backbone/1/model.safetensors": ("04-backbone/2",),
    "04-backbone/3/config.json": ("05-fuse",), "05-fuse/model.safetensors": ("06-refine/1",),
    "06-refine/2/tokenizer.json": ("06-refine/3",), "06-refine/3/model.safetensors": ("07-evaluate/refine-3",),
    "07-evaluate/fused/upper/score.json": (),
}  # fmt: skip


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "gone"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_rots(whole: Path, tmp_path: Path, name: str, damage: str) -> None:
    """Found before it is used; the stage and the way to redo it are named, and that way leads to the same end."""
    out = copy(whole, tmp_path / "out", FILES[name])
    shutil.rmtree(out / "model", ignore_errors=True)
    file = out / "stages" / name
    data = bytearray(file.read_bytes())
    file.unlink()  # it may be linked to from elsewhere
    data[len(data) // 2] ^= 4
    if damage != "gone":
        file.write_bytes(data if damage == "a flipped bit" else data[: len(data) // 2])
    stage, recipe, before = str(Path(name).parent), Recipe.parse(tiny.recipe(whole.parent)), stamps(out)
    with pytest.raises(CpiftError, match=f"{stage}.*; remove .*{stage} and run again") as caught:
        run(recipe, out)
    assert "\n" not in str(caught.value)
    assert set(stamps(out)) >= set(before)
    assert not (out / "model").exists()
    shutil.rmtree(out / "stages" / stage)
    run(recipe, out)
    assert same(out / "model", whole / "model")


def diverging(whole: Path, place: Path, **training: Any) -> tuple[Recipe, Path]:
    """A run up to its last refinement, which is to be trained with other settings."""
    data = tiny.recipe(whole.parent)
    data["refine"] |= {"epochs": 8, "training": {"logging_steps": 1, "lr_scheduler_type": "constant", **training}}
    return Recipe.parse(data), copy(whole, place / "out", ("06-refine", "07-evaluate/refine*"))


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"learning_rate": 1e30}, r"the (loss|gradient's norm) is (nan|inf)"),
        ({"learning_rate": 30.0, "max_grad_norm": 1e9}, "the training diverges: the loss is"),
    ],
    ids=["not a number", "diverges"],
)
def test_training_that_diverges(whole: Path, tmp_path: Path, training: dict[str, Any], words: str) -> None:
    """Stops at once with stage, task, step and what to change; the stage is not marked as done."""
    recipe, out = diverging(whole, tmp_path, **training)
    listener = Listener()
    with pytest.raises(CpiftError, match=rf"06-refine/1 \(\w+\): {words}.* at step \d; lower training.learning_rate"):
        run(recipe, out, reporter=listener)
    assert not (out / "stages/06-refine/1").exists()
    assert not (out / "model").exists()
    data = tiny.recipe(whole.parent)
    run(Recipe.parse(data), out)
    assert same(out / "model", whole / "model")


def test_edited_rows_and_recipe(whole: Path, tmp_path: Path) -> None:
    """What changed is said of each stage, and only what depends on it is made again."""
    place = tmp_path / "copy"
    place.mkdir()
    out, listener = copy(whole, tmp_path / "out"), Listener()
    data = tiny.recipe(place) | {"model": str(whole.parent / "base")}
    rows = (place / "upper.train.jsonl").read_text().splitlines()
    (place / "upper.train.jsonl").write_text("\n".join([*rows[1:], rows[0]]) + "\n")
    data["region"]["percent"] = 4.0
    before = stamps(out)
    run(Recipe.parse(data), out, reporter=listener)
    after = stamps(out)
    told = "\n".join(listener.said)
    assert "00-tasks/upper is done again: task.train.file changed" in told
    assert "01-probe/upper is done again: 00-tasks/upper was made anew" in told
    assert "02-identify/reverse is done again: percent changed" in told
    kept = {stage for stage in before if before[stage] == after[stage]}
    assert {"00-tasks/reverse", "01-probe/reverse", "01-probe/double", "07-evaluate/probe-double/double"} <= kept
    assert "01-probe/upper" not in kept


def test_a_bad_row_far_down_in_an_edited_file(whole: Path, tmp_path: Path) -> None:
    """Before anything is made, even of other tasks; the run that is there stays whole."""
    place = tmp_path / "copy"
    place.mkdir()
    out = copy(whole, tmp_path / "out")
    data = tiny.recipe(place) | {"model": str(whole.parent / "base")}
    row = json.dumps(tiny.rows("double", 1, 0)[0])
    (place / "double.train.jsonl").write_text(f"{row}\n" * 9999 + '{"messages": []}\n')
    data["probe"]["steps"] = 4
    before, listener = {p: p.stat().st_mtime_ns for p in out.rglob("*")}, Listener()
    with pytest.raises(CpiftError, match=r"double\.train\.jsonl, line 10000: has no assistant turn"):
        run(Recipe.parse(data), out, reporter=listener)
    assert listener.made == []
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
