"""What is made again: only what changed and what depends on it, and the reason is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
from safetensors.numpy import load_file, save_file
from tiny_run import Listener, copy, same, stamps

from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.status import stage_states


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def place(whole: Path) -> Path:
    return whole.parent


def test_what_is_done_and_unchanged_is_not_done_again(whole: Path, place: Path, tmp_path: Path) -> None:
    """A second call makes nothing, wherever the folder has been moved to."""
    out, listener = copy(whole, tmp_path / "again"), Listener()
    before = stamps(out)
    run(Recipe.parse(tiny.recipe(place)), out, reporter=listener)
    assert listener.made == []
    assert set(listener.kept) == set(before)
    assert stamps(out) == before
    assert same(out / "model", whole / "model")


def test_scores_that_are_made_together_take_their_time_together(whole: Path, place: Path, tmp_path: Path) -> None:
    """What is shown at their end is the time of all tasks; each task's facts hold its share."""
    shown: dict[str, float] = {}

    class Times(Listener):
        def finished(self, name: str, facts: Mapping[str, Any]) -> None:
            shown[name] = facts["seconds"]

    out = copy(whole, tmp_path / "out", ("07-evaluate/fused",))
    run(Recipe.parse(tiny.recipe(place)), out, reporter=Times())
    files = [out / f"stages/07-evaluate/fused/{task}/stage.json" for task in ("reverse", "upper", "double")]
    shares = [json.loads(file.read_text())["facts"]["seconds"] for file in files]
    assert list(shown) == ["07-evaluate/fused/reverse"]
    assert shown["07-evaluate/fused/reverse"] >= sum(shares) > 0


def test_a_task_added_makes_only_what_depends_on_it(whole: Path, place: Path, tmp_path: Path) -> None:
    """Its rows, probe and region; groups and what follows; no probe, region or probe's score of the others."""
    out, listener = copy(whole, tmp_path / "more"), Listener()
    before = stamps(out)
    recipe = Recipe.parse(tiny.recipe(place, ("reverse", "upper", "double", "first")))
    result = run(recipe, out, reporter=listener)
    after = stamps(out)
    old = (
        "00-tasks",
        "01-probe",
        "02-identify",
        "07-evaluate/base",
        "07-evaluate/probe",
        "07-guard/base",
        "07-guard/probe",
    )
    assert {s for s in before if s.startswith(old)} == {s for s in before if before[s] == after[s]}
    assert {"00-tasks/first", "01-probe/first", "02-identify/first", "03-group"} <= set(listener.made)
    assert all(set(row) == {"reverse", "upper", "double", "first"} for row in result["models"].values())


def refine(**more: Any) -> Callable[[dict[str, Any]], None]:
    return lambda recipe: recipe["refine"].update(more)


# What changes in the recipe; the first stages that are stale; what of them is said; stages that stay.
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str], str, list[str]]] = {
    "licence": (lambda r: r["tasks"]["upper"].update(licence="MIT"), [], "", ["07-evaluate/refine-3/upper"]),
    "probe": (lambda r: r["probe"].update(steps=4), ["01-probe/reverse", "01-probe/upper", "01-probe/double"], "steps changed", ["00-tasks/upper"]),
    "probe.training": (lambda r: r["probe"].update(training={"learning_rate": 1e-3}), ["01-probe/reverse", "01-probe/upper", "01-probe/double"], "training.learning_rate changed", []),
    "region": (lambda r: r["region"].update(percent=2.0), ["02-identify/reverse", "02-identify/upper", "02-identify/double"], "percent changed", ["01-probe/upper"]),
    "group": (lambda r: r["group"].update(threshold=0.8), ["03-group"], "threshold changed", ["02-identify/upper"]),
    "order of tasks": (lambda r: r.update(tasks=dict(reversed(r["tasks"].items()))), ["03-group"], "tasks changed", ["01-probe/upper"]),
    "backbone.training": (lambda r: r.update(backbone={"from": "multi_stage", "training": {"learning_rate": 1e-3}}), ["04-backbone/1"], "training.learning_rate changed", ["03-group", "07-evaluate/probe-upper/upper"]),
    "fuse": (lambda r: r.update(fuse={"overlap": "mean"}), ["05-fuse"], "overlap changed", ["04-backbone/3", "07-evaluate/backbone/upper"]),
    "refine.epochs": (refine(epochs=2), ["06-refine/1"], "steps changed", ["05-fuse", "07-evaluate/fused/upper"]),
    "refine.training": (refine(training={"weight_decay": 0.5}), ["06-refine/1"], "training.weight_decay changed", ["05-fuse"]),
    "refine.examples": (refine(examples_per_task=3), ["06-refine/1"], "examples changed", ["05-fuse"]),
    "refine.resample": (refine(resample=True), [], "", ["06-refine/3"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_change_makes_stale(whole: Path, place: Path, name: str) -> None:
    """``status`` tells the first stages and why, and what stays; later stages follow from these."""
    change, first, why, kept = CHANGES[name]
    data = tiny.recipe(place)
    change(data)
    states = {s.name: s for s in stage_states(Recipe.parse(data), whole)}
    stale = [s.name for s in states.values() if s.state != "done"]
    assert stale[: len(first)] == first
    assert bool(stale) == bool(first)
    assert all(why in states[s].why for s in first)
    assert all(states[s].state == "done" for s in kept)


def test_a_longer_refinement_redoes_only_that_and_says_so(whole: Path, place: Path, tmp_path: Path) -> None:
    """Everything before it stays; the model changes."""
    out, listener = copy(whole, tmp_path / "changed"), Listener()
    before = stamps(out)
    recipe = Recipe.parse(tiny.recipe(place, refine={"examples_per_task": 4, "epochs": 2}))
    stale = {s.name for s in stage_states(recipe, out) if s.state == "stale"}
    run(recipe, out, reporter=listener)
    after = stamps(out)
    again = {s for s in before if before[s] != after[s]}
    assert again == {s for s in before if s.startswith(("06-refine", "07-evaluate/refine", "07-guard/refine"))}
    assert stale == again, "status says what run then does"
    assert any("06-refine/1 is done again: steps changed" in text for text in listener.said)
    assert not same(out / "model", whole / "model")


def test_the_reason_is_the_true_one(whole: Path, place: Path) -> None:
    """With freezing off no region was made anew."""
    recipe = Recipe.parse(tiny.recipe(place, refine={"examples_per_task": 4, "freeze": False}))
    states = {s.name: s for s in stage_states(recipe, whole)}
    assert states["06-refine/2"].state == "stale"
    assert "was made anew" not in states["06-refine/2"].why


def test_another_metric_gives_other_scores(whole: Path, place: Path, tmp_path: Path) -> None:
    """Of that task alone, without any training."""
    out, listener = copy(whole, tmp_path / "out"), Listener()
    data = tiny.recipe(place)
    data["tasks"]["upper"]["metric"] = "loss"
    result = run(Recipe.parse(data), out, reporter=listener)
    assert not [s for s in listener.made if s.startswith(("01", "04", "06"))]
    assert {row["upper"]["metric"] for row in result["models"].values()} == {"loss"}
    assert {row["double"]["metric"] for row in result["models"].values()} == {"exact_match"}


def test_rows_and_base_count_by_what_they_hold(whole: Path, tmp_path: Path) -> None:
    """An edited file of rows makes its task stale, an edited base everything; a touched file nothing."""
    folder = tmp_path / "copy"
    folder.mkdir()
    recipe = Recipe.parse(tiny.recipe(folder))

    def states() -> dict[str, str]:
        return {s.name: s.state for s in stage_states(recipe, whole)}

    assert set(states().values()) == {"done"}, "another path, the same content"
    (folder / "upper.train.jsonl").touch()
    assert set(states().values()) == {"done"}
    (folder / "upper.train.jsonl").write_text((folder / "upper.train.jsonl").read_text() * 2)
    assert [n for n, state in states().items() if state == "stale"] == ["00-tasks/upper"]
    tiny.recipe(folder)
    file = folder / "base/model.safetensors"
    tensors = {n: w.copy() for n, w in load_file(file).items()}
    tensors[sorted(tensors)[0]].flat[0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert states()["01-probe/reverse"] == "stale"
    assert states()["00-tasks/reverse"] == "done"


@pytest.mark.parametrize(
    ("stage", "file"),
    [("01-probe/upper", "model.safetensors"), ("02-identify/upper", "region.safetensors"), ("04-backbone/3", "model.safetensors")],
)  # fmt: skip
def test_a_damaged_file_is_found_before_it_is_used(
    whole: Path, place: Path, tmp_path: Path, stage: str, file: str
) -> None:
    """One flipped bit: the file, the stage, and what to do; done so, the run ends as it should."""
    out = copy(whole, tmp_path / "damaged", ("05-fuse", "06-refine", "07-evaluate/*[!s][!e]"))
    damaged = out / "stages" / stage / file
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(data)
    recipe = Recipe.parse(tiny.recipe(place))
    with pytest.raises(CpiftError, match=f"{stage}/{file}: was changed or damaged .*; remove .*{stage}"):
        run(recipe, out, until="fuse")
    assert not (out / "stages/05-fuse").exists()
    shutil.rmtree(out / "stages" / stage)
    run(recipe, out, until="fuse")
    assert same(out / "stages/05-fuse", whole / "stages/05-fuse")


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_last_checkpoint_is_not_handed_out(whole: Path, place: Path, tmp_path: Path, damage: str) -> None:
    """Nothing is to be made; yet what is made the model is looked at."""
    out = copy(whole, tmp_path / "damaged")
    file = out / "stages/06-refine/3/model.safetensors"
    data = file.read_bytes()
    file.unlink()
    if damage == "changed":
        file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    with pytest.raises(CpiftError, match="06-refine/3"):
        run(Recipe.parse(tiny.recipe(place)), out)


def test_a_stage_that_cannot_be_read_is_made_again(whole: Path, place: Path, tmp_path: Path) -> None:
    """A ``stage.json`` that is cut short counts as no stage."""
    out, listener = copy(whole, tmp_path / "out"), Listener()
    (out / "stages/03-group/stage.json").write_text('{"key":')
    run(Recipe.parse(tiny.recipe(place)), out, until="refine", reporter=listener)
    assert listener.made == ["03-group"], "it makes the same, so nothing else is due"
    assert json.loads((out / "stages/03-group/stage.json").read_text())["facts"]
