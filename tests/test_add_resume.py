"""Additions that are cut off in any stage: run again, they end with the same bits and repeat nothing that was finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import tiny_run
from tiny_add import arrivals, models, same_bits
from tiny_run import Cut, Listener, call, stamps

from cpift.recipe.recipe import Recipe
from cpift.runs.alternatives import compare_additions
from cpift.runs.pipeline import run

BY_FISHER = {"by": "fisher", "percent": 10.0}
CUTS = {
    "average": [
        ("stage", "03-protect"), ("progress", "03-protect"), ("finished", "03-protect"),
        ("stage", "04-arrive/1/train"), ("progress", "04-arrive/1/train"), ("finished", "04-arrive/1/train"),
        ("stage", "04-arrive/1/identify"), ("finished", "04-arrive/1/identify"),
        ("stage", "04-arrive/1/fuse"), ("finished", "04-arrive/1/fuse"),
        ("progress", "07-evaluate/before"), ("finished", "07-evaluate/before"),  # the guard set is scored with the tasks
        ("progress", "07-evaluate/arrival-1"), ("finished", "07-evaluate/arrival-1"),
    ],
    "inside": [("progress", "04-arrive/1/inside"), ("finished", "04-arrive/1/inside"), ("stage", "04-arrive/1/fuse")],
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("add-resume"))


def recipe_of(place: Path, kind: str) -> Recipe:
    if kind == "average":
        return Recipe.parse(arrivals(place, ["upper"], ["reverse"], protect=BY_FISHER))
    return Recipe.parse(arrivals(place, ["upper"], [], arrivals={"train": "inside"}))


@pytest.mark.parametrize("kind", ["average", pytest.param("inside", marks=pytest.mark.long)])
def test_cut_off_everywhere_an_addition_ends_with_the_same_bits(place: Path, tmp_path: Path, kind: str) -> None:
    recipe, whole, out = recipe_of(place, kind), tmp_path / "whole", tmp_path / "out"
    run(recipe, whole)
    tiny_run.cut_off_everywhere(recipe, out, CUTS[kind])
    assert set(stamps(out)) == set(stamps(whole))
    made = [str(f.parent.relative_to(whole)) for f in whole.rglob("model.safetensors")]
    assert len(made) >= 3
    assert all(same_bits(out / folder, whole / folder) for folder in made)
    regions = [f.relative_to(whole) for f in whole.rglob("*region.safetensors")]
    assert all((out / file).read_bytes() == (whole / file).read_bytes() for file in regions)
    patches = [f.name for f in whole.glob("*.patch.safetensors")]
    assert len(patches) == (kind == "inside")
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in patches)
    assert not list(out.rglob("*.partial"))


@pytest.mark.long  # of a recipe's other trainings: test_resume.py
@pytest.mark.parametrize(("part", "adapter"), [("train", None), ("inside", None), ("train", {"type": "lora", "r": 4})])
def test_a_long_addition_goes_on_from_the_trainers_checkpoint(
    place: Path, tmp_path: Path, part: str, adapter: dict[str, object] | None
) -> None:
    how = {"train": "inside" if part == "inside" else "all", "training": {"save_strategy": "steps", "save_steps": 1}}
    data = arrivals(place, ["upper"], ["reverse"], arrivals={**how, "adapter": adapter})
    recipe, stage, out = Recipe.parse(data), f"04-arrive/1/{part}", tmp_path / "out"
    run(recipe, tmp_path / "whole", until="refine")
    with pytest.raises(Cut):
        run(recipe, out, until="refine", reporter=Listener("progress", stage, at=4))
    listener = Listener()
    run(recipe, out, until="refine", reporter=listener)
    assert next(step for name, step in listener.steps if name == stage) >= 4
    assert same_bits(out / "stages" / stage, tmp_path / "whole/stages" / stage)


def test_a_lost_disk_costs_nothing_where_there_is_a_mirror(place: Path, tmp_path: Path) -> None:
    recipe, out, mirror = recipe_of(place, "inside"), tmp_path / "out", (tmp_path / "mirror").as_uri()
    run(recipe, out, mirror=mirror)
    assert (tmp_path / "mirror/upper.patch.safetensors").is_file()
    assert list((tmp_path / "mirror/model/cpift_regions").iterdir())
    again, listener = tmp_path / "again", Listener()
    run(recipe, again, mirror=mirror, reporter=listener)
    assert not listener.made
    assert same_bits(again / "model", out / "model")
    for file in ("upper.patch.safetensors", "model/cpift_regions/upper.region.safetensors"):
        assert (again / file).read_bytes() == (out / file).read_bytes()


def test_the_command_copies_to_its_mirror(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a mirror does is tested above; here, that the option reaches it, and the recipe's command line."""
    asked: list[object] = []
    monkeypatch.setattr("cpift.runs.pipeline.run", lambda recipe, out, **options: asked.append(options["mirror"]) or {})
    rows = tiny.jsonl(tmp_path / "upper.jsonl", tiny.rows("upper", 12, 0))
    given = ["--model", place / "mine", "--task", f"upper={rows}", "--out", tmp_path / "out", "--mirror", "memory://m"]
    assert call(capsys, "add", *given)[0] == 0
    assert asked == ["memory://m"]
    printed = call(capsys, "add", *given, "--write-recipe", tmp_path / "recipe.yaml")[1]
    assert printed.strip().endswith("--mirror memory://m")


@pytest.mark.long  # an addition that is cut off: above; that ways are kept: test_add_ways.py
@pytest.mark.parametrize(
    "cut",
    [
        ("finished", "04-arrive/1/train"),
        ("progress", "04-arrive/1/train"),
        ("finished", "07-evaluate/arrival-1"),
    ],
)
def test_a_comparison_that_is_cut_off_resumes_to_the_same_table(
    place: Path, tmp_path: Path, cut: tuple[str, str]
) -> None:
    recipe = Recipe.parse(arrivals(place, ["upper"], ["reverse"]))
    run(recipe, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    whole = compare_additions(recipe, tmp_path / "whole", Listener())
    with pytest.raises(Cut):
        compare_additions(recipe, tmp_path / "out", Listener(*cut))
    before = stamps(tmp_path / "out/compare/sft")
    assert compare_additions(recipe, tmp_path / "out", Listener()) == whole
    after = stamps(tmp_path / "out/compare/sft")
    assert {stage: after[stage] for stage in before if ".partial" not in stage} == {
        stage: stamp for stage, stamp in before.items() if ".partial" not in stage
    }
    way = "compare/sft_half_rate/stages/04-arrive/1/train"
    assert same_bits(tmp_path / "out" / way, tmp_path / "whole" / way)
