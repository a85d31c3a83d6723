"""Files that rot, training that diverges, inputs edited in between: what must hold. Used by the tests and by the soak."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_run import Listener, copy, same, stamps

from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run

# A file of each kind of stage, and the stages to take away so that it is read again.
FILES = {
    "00-tasks/upper/train.jsonl": ("01-probe/upper",), "00-tasks/upper/eval.jsonl": ("07-evaluate/fused",),
    "01-probe/upper/model.safetensors": ("02-identify",), "02-identify/upper/region.safetensors": ("03-group",),
    "03-group/groups.json": (), "04-backbone/1/model.safetensors": ("04-backbone/2",),
    "04-backbone/3/config.json": ("05-fuse",), "05-fuse/model.safetensors": ("06-refine/1",),
    "06-refine/2/tokenizer.json": ("06-refine/3",), "06-refine/3/model.safetensors": ("07-evaluate/refine-3",),
    "07-evaluate/fused/upper/score.json": (), "07-guard/fused/guard.json": (),
}  # fmt: skip
DAMAGES = ("a flipped bit", "cut short", "gone")


def rot(whole: Path, out: Path, name: str, damage: str, at: float = 0.5, bit: int = 2) -> Path:
    """Damage a stage's file, at a share of its length: found before it is used, the stage and the way out named.

    Returns the folder of the damaged stage.
    """
    known = next(file for file in FILES if Path(file).parent == Path(name).parent)
    out = copy(whole, out, FILES.get(name, FILES[known]))
    shutil.rmtree(out / "model", ignore_errors=True)
    file = out / "stages" / name
    data = bytearray(file.read_bytes())
    file.unlink()  # it may be linked to from elsewhere
    place = min(int(len(data) * at), len(data) - 1)
    if damage == "a flipped bit":
        data[place] ^= 1 << bit
    if damage != "gone":
        file.write_bytes(data if damage == "a flipped bit" else data[:place])
    stage, recipe, before = str(Path(name).parent), Recipe.parse(tiny.recipe(whole.parent)), stamps(out)
    with pytest.raises(CpiftError, match=f"{stage}.*; remove .*{stage} and run again") as caught:
        run(recipe, out)
    assert "\n" not in str(caught.value)
    assert set(stamps(out)) >= set(before)
    assert not (out / "model").exists()
    return out / "stages" / stage


def redo(whole: Path, damaged: Path) -> None:
    """The way out that was named leads to the same end."""
    out = damaged
    while out.name != "stages":
        out = out.parent
    shutil.rmtree(damaged)
    run(Recipe.parse(tiny.recipe(whole.parent)), out.parent)
    assert same(out.parent / "model", whole / "model")


# Of a training: its stage, the part of the recipe, and the stages to take away so that it comes again.
TRAININGS = {
    "01-probe": ("probe", ("01-probe/*", "02*", "03*", "04*", "05*", "06*", "07*")),
    "04-backbone": ("backbone", ("04-backbone", "05*", "06*", "07-*/backbone", "07-*/fused", "07-*/refine*")),
    "06-refine": ("refine", ("06-refine", "07-*/refine*")),
}
DIVERGING = {
    "not a number": ({"learning_rate": 1e30}, r"the (loss|gradient's norm) is (nan|inf)"),
    "diverges": ({"learning_rate": 30.0, "max_grad_norm": 1e9}, "the training diverges: the loss is"),
}


def diverge(whole: Path, out: Path, stage: str, kind: str) -> None:
    """It stops at once with stage, task, step and what to change; the stage is not marked as done."""
    training, words = DIVERGING[kind]
    part, without = TRAININGS[stage]
    data, out = tiny.recipe(whole.parent), copy(whole, out, without)
    data.setdefault(part, {})["training"] = {"logging_steps": 1, "lr_scheduler_type": "constant", **training}
    if stage == "06-refine":
        data[part]["epochs"] = 8
    with pytest.raises(CpiftError, match=rf"{stage}/\w+ \(\w+\): {words}.* at step \d; lower training.learning_rate"):
        run(Recipe.parse(data), out)
    assert not list((out / "stages" / stage).glob("[!.]*"))
    assert not (out / "model").exists()
    run(Recipe.parse(tiny.recipe(whole.parent)), out)
    assert same(out / "model", whole / "model")


def _swap_rows(part: str) -> Callable[[dict[str, Any], Path], None]:
    def edit(data: dict[str, Any], place: Path) -> None:
        file = place / f"upper.{part}.jsonl"
        rows = file.read_text().splitlines()
        file.write_text("\n".join([*rows[1:], rows[0]]) + "\n")

    return edit


def _set(part: str, key: str, value: Any) -> Callable[[dict[str, Any], Path], None]:
    def edit(data: dict[str, Any], place: Path) -> None:
        data.setdefault(part, {})[key] = value

    return edit


LAST = ("05-", "06-", "07-evaluate/fused", "07-evaluate/refine", "07-guard/fused", "07-guard/refine")
# An edit; what must be said; the stages that may be made again, the first of which must be.
EDITS = {
    "training rows": (
        _swap_rows("train"), "00-tasks/upper is done again: task.train.file changed",
        ("00-tasks/upper", "01-probe/upper", "02-identify/upper", "03-", "04-", "07-evaluate/base/upper", "07-evaluate/backbone",
         "07-guard/backbone", "07-evaluate/probe-upper", "07-guard/probe-upper", "07-evaluate/probe-reverse/upper",
         "07-evaluate/probe-double/upper", *LAST),
    ),
    "rows to score by": (
        _swap_rows("eval"), "00-tasks/upper is done again: task.eval.file changed",
        ("00-tasks/upper", "01-probe/upper", "04-", "06-", "07-evaluate/base/upper", "07-evaluate/probe-reverse/upper",
         "07-evaluate/probe-double/upper", "07-evaluate/probe-upper/upper", "07-evaluate/backbone/upper",
         "07-evaluate/fused/upper", "07-evaluate/refine-1/upper", "07-evaluate/refine-2/upper", "07-evaluate/refine-3/upper"),
    ),
    "the share that is core": (
        _set("region", "percent", 4.0), "02-identify/reverse is done again: percent changed", ("02-", "03-", *LAST),
    ),
    "fusion": (_set("fuse", "overlap", "order"), "05-fuse is done again: overlap changed", LAST),
    "refinement": (
        _set("refine", "training", {"learning_rate": 3e-3}), "06-refine/1 is done again: training.learning_rate changed",
        ("06-", "07-evaluate/refine", "07-guard/refine"),
    ),
}  # fmt: skip


def edited(whole: Path, place: Path, name: str) -> None:
    """What changed is said, only what depends on it is made again, and it ends as a run from the start would."""
    edit, words, affected = EDITS[name]
    data = tiny.recipe(place) | {"model": str(whole.parent / "base")}
    out, listener = copy(whole, place / "out"), Listener()
    edit(data, place)
    before = stamps(out)
    run(Recipe.parse(data), out, reporter=listener)
    after = stamps(out)
    assert words in "\n".join(listener.said), listener.said
    again = {stage for stage in before if before[stage] != after[stage]}
    assert any(stage.startswith(affected[0]) for stage in again)
    assert not {stage for stage in again if not stage.startswith(affected)}, again
    run(Recipe.parse(data), place / "fresh")
    assert same(out / "model", place / "fresh/model")


BAD_ROWS = {
    "no turn": '{"messages": []}', "not JSON": '{"messages": [', "a list": "[1, 2]", "no words": '{"messages": "hello"}',
    "half a character": '{"prompt": "a", "completion": "\\ud800"}', "other keys": '{"question": "a", "answer": "b"}',
}  # fmt: skip


def bad_row(whole: Path, place: Path, name: str, part: str = "train") -> None:
    """At row 10,000 of an edited file: found before anything is made, even of other tasks; the run stays whole."""
    out = copy(whole, place / "out")
    data = tiny.recipe(place) | {"model": str(whole.parent / "base")}
    row = json.dumps(tiny.rows("double", 1, 0)[0])
    (place / f"double.{part}.jsonl").write_text(f"{row}\n" * 9999 + BAD_ROWS[name] + "\n")
    data["probe"]["steps"] = 4
    before, listener = {p: p.stat().st_mtime_ns for p in out.rglob("*")}, Listener()
    with pytest.raises(CpiftError, match=rf"double\.{part}\.jsonl, line 10000: ") as caught:
        run(Recipe.parse(data), out, reporter=listener)
    assert "\n" not in str(caught.value)
    assert listener.made == []
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
