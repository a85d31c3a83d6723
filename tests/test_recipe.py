"""What a recipe may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cpift.errors import CpiftError
from cpift.recipe import Recipe

TASK = {"generate": "letter_counting", "train": 4, "eval": 2}
LEAST: dict[str, Any] = {"model": "some/model", "tasks": {"a": TASK}}
ROOT = Path(__file__).parents[1]


def test_defaults_are_the_papers_method() -> None:
    """One per cent, τ = 0.1, random order, multi-stage backbone, SLERP of weights per tensor, frozen cores."""
    told = Recipe.parse(LEAST).model_dump(by_alias=True)
    assert told["probe"]["steps"] == "auto"
    assert told["region"] == {"percent": 1.0, "exclude": []}
    assert told["group"] == {"threshold": 0.1, "order": "random"}
    assert told["backbone"]["from"] == "multi_stage"
    assert told["fuse"] == {
        "overlap": "largest",
        "interpolation": "slerp",
        "space": "weights",
        "vector": "tensor",
        "weight": "equal",
    }
    refine = {k: told["refine"][k] for k in ("examples_per_task", "epochs", "data", "freeze")}
    assert refine == {"examples_per_task": 64, "epochs": 1.0, "data": "group", "freeze": True}
    assert (told["seed"], told["trust_remote_code"]) == (0, False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modle": "x"}, "unknown key 'modle'; did you mean 'model'"),
        ({"region": {"percnt": 1}}, "unknown key 'region.percnt'; did you mean 'percent'"),
        ({"backbone": {"form": "multi_stage"}}, "unknown key 'backbone.form'; did you mean 'from'"),
        ({"tasks": {"a": {**TASK, "metrik": "loss"}}}, "unknown key 'tasks.a.metrik'; did you mean 'metric'"),
        ({"region": {"percent": 0}}, "region.percent: .*greater than 0"),
        ({"region": {"percent": 100.5}}, "region.percent: .*less than or equal to 100"),
        ({"region": {"percent": "x"}}, r"region.percent: .*\(got 'x'\)"),
        ({"group": {"threshold": -1}}, "group.threshold"),
        ({"fuse": {"overlap": "bigest"}}, "fuse.overlap: .*'largest', 'order' or 'mean'"),
        ({"fuse": {"weight": 1.5}}, "fuse.*weight must be equal or a number from 0 to 1"),
        ({"fuse": {"interpolation": "karcher", "weight": 0.5}}, "karcher takes all models alike"),
        ({"probe": {"steps": 0}}, "steps must be auto or at least 1"),
        ({"refine": {"epochs": 0}}, "refine.epochs"),
        ({"tasks": {}}, "no task is given"),
        ({"tasks": {"a": {"train": 4, "eval": 2}}}, "nothing to generate"),
        ({"tasks": {"a": {**TASK, "eval": "x.jsonl"}}}, "numbers of rows"),
        ({"tasks": {"a": {**TASK, "eval": 0}}}, "at least one row"),
        ({"tasks": {"../a": TASK}}, "cannot be the name of a task"),
        ({"tasks": {".a": TASK}}, "cannot be the name of a task"),
        ({"tasks": {"a\x1b[2J": TASK}}, "unprintable"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    """The key, the nearest known one, what is allowed, what was given."""
    with pytest.raises(CpiftError, match=words):
        Recipe.parse({**LEAST, **change})


def test_all_problems_are_told_together() -> None:
    """Not one a run."""
    with pytest.raises(CpiftError) as caught:
        Recipe.parse({**LEAST, "sed": 1, "region": {"percent": 0}, "fuse": {"space": "x"}})
    assert all(word in str(caught.value) for word in ("'sed'", "region.percent", "fuse.space"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "a table of keys"),
        ("", "a table of keys"),
        ("model: [", "not a YAML file"),
        ("model: !!python/object/apply:os.system [ls]", "not a YAML file"),
        ("a: &a [x]\nb: *a", "aliases are not supported, line 2"),
        ("model: x\nmodel: y", "'model' stands twice, line 2"),
        ("1: x", "the key 1 is not text"),
        ("\x00", "not a YAML file"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, words: str) -> None:
    """Tags, aliases (and with them bombs), doubled keys, other text: the file is named."""
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(CpiftError, match=words) as caught:
        Recipe.load(tmp_path / "r.yaml")
    assert "r.yaml" in str(caught.value)


def test_a_bare_word_stands_for_a_backbone_and_overrides_are_dotted(tmp_path: Path) -> None:
    """As in the documentation; an override goes as deep as it needs to."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**LEAST, "backbone": "pretrained"}))
    found = Recipe.load(tmp_path / "r.yaml", {"probe.steps": 7, "refine.training.learning_rate": 0.5})
    assert found.backbone.source == "pretrained"
    assert found.probe.steps == 7
    assert found.training_of("refine") == {"learning_rate": 0.5}
    with pytest.raises(CpiftError, match="did you mean 'steps'"):
        Recipe.load(tmp_path / "r.yaml", {"probe.stesp": 7})


def test_what_is_dumped_loads_as_the_same(tmp_path: Path) -> None:
    """With every default written out."""
    recipe = Recipe.parse({**LEAST, "backbone": "multi_task", "group": {"order": [["a"]]}})
    (tmp_path / "r.yaml").write_text(recipe.dump())
    assert Recipe.load(tmp_path / "r.yaml") == recipe


def test_paths_count_from_the_recipes_folder(tmp_path: Path) -> None:
    """Files that are there, and names of files that are not; hub ids stay."""
    (tmp_path / "base").mkdir()
    data = {"model": "base", "tasks": {"a": {"train": "x.jsonl", "eval": 2}, "b": {"train": "org/set", "eval": 2}}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    found = Recipe.load(tmp_path / "r.yaml")
    assert found.model == str(tmp_path / "base")
    assert found.tasks["a"].train == str(tmp_path / "x.jsonl")
    assert found.tasks["b"].train == "org/set"


@pytest.mark.parametrize(
    "file", [*sorted((ROOT / "recipes").glob("*.yaml")), ROOT / "src/cpift/recipe_template.yaml"], ids=lambda f: f.name
)
def test_every_recipe_that_is_shipped_loads(file: Path) -> None:
    """And its training settings are known."""
    from cpift.training import check_training

    recipe = Recipe.load(file)
    for stage in ("probe", "backbone", "refine"):
        check_training(recipe.training_of(stage))  # type: ignore[arg-type]
