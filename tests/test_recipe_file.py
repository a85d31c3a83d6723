"""The recipe's file: what is refused as no recipe, where paths count from, overrides, writing it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.recipe.yaml import set_key

TASK = {"generate": "letter_counting", "train": 4, "eval": 2}
LEAST: dict[str, Any] = {"model": "some/model", "tasks": {"a": TASK}}
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "a table of keys"),
        ("", "a table of keys"),
        ("model: [", "not a YAML file"),
        ("model: !!python/object/apply:os.system [ls]", "not a YAML file"),
        ("model: !include other.yaml", "not a YAML file"),
        ("a: &a [x]\nb: *a", "aliases are not supported, line 2"),
        ("tasks:\n  a: {train: x}\n  a: {train: y}", "'a' stands twice, line 3"),
        ("[" * 5000, "not a YAML file"),
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


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    """Nine lines that would stand for a thousand million words."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(CpiftError, match="aliases are not supported, line 2"):
        Recipe.load(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: None, "No such file"),
        (lambda f: f.mkdir(), "Is a directory"),
        (lambda f: f.write_bytes(b"model: \xff"), "not a YAML file"),
    ],
    ids=["missing", "a folder", "not UTF-8"],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, make: Any, words: str) -> None:
    """One line, with the path."""
    make(tmp_path / "r.yaml")
    with pytest.raises(CpiftError, match=words) as caught:
        Recipe.load(tmp_path / "r.yaml")
    assert str(tmp_path / "r.yaml") in str(caught.value)


def test_a_bare_word_stands_for_a_backbone_and_overrides_are_dotted(tmp_path: Path) -> None:
    """As in the documentation; an override goes as deep as it needs to."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**LEAST, "backbone": "pretrained"}))
    found = Recipe.load(tmp_path / "r.yaml", {"probe.steps": 7, "refine.training.learning_rate": 0.5})
    assert found.backbone.source == "pretrained"
    assert found.probe.steps == 7
    assert found.training_of("refine") == {"learning_rate": 0.5}
    with pytest.raises(CpiftError, match="did you mean 'steps'"):
        Recipe.load(tmp_path / "r.yaml", {"probe.stesp": 7})
    assert Recipe.load(tmp_path / "r.yaml", {"backbone.training.bf16": False}).backbone.source == "pretrained"
    assert Recipe.load(tmp_path / "r.yaml", {"tasks.a.train": 9}).tasks["a"].train == 9
    with pytest.raises(CpiftError, match=r"--set model\.x: model is not a table"):
        Recipe.load(tmp_path / "r.yaml", {"model.x": 1})


def test_what_is_dumped_loads_as_the_same(tmp_path: Path) -> None:
    """With every default written out."""
    shared = {"min_lr": [1.0e-7]}
    training = {"lr_scheduler_kwargs": shared, "learning_rate": 1e-5}
    recipe = Recipe.parse(
        {
            **LEAST,
            "tasks": {"a": TASK, "Füße ☂ 'b': #": TASK},
            "backbone": {"from": "multi_task", "training": training},
            "refine": {"training": training},
            "group": {"order": [["a", "Füße ☂ 'b': #"]]},
            "region": {"percent": 0.001},
        }
    )
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
    "file", [*sorted((ROOT / "recipes").glob("*.yaml")), ROOT / "src/cpift/recipe/template.yaml"], ids=lambda f: f.name
)
def test_every_recipe_that_is_shipped_loads(file: Path) -> None:
    """And its training settings are known."""
    from cpift.train.config import check_training

    recipe = Recipe.load(file)
    for stage in ("probe", "backbone", "refine"):
        check_training(recipe.training_of(stage))  # type: ignore[arg-type]


def test_a_key_of_arrivals_is_set_beside_their_bare_list() -> None:
    """``cpift add --set arrivals.epochs=0.5``, as docs/add.md has it: a bare list is short for the order."""
    data: dict[str, object] = {"arrivals": ["new"]}
    set_key(data, "arrivals.epochs", 0.5)
    assert data == {"arrivals": {"order": ["new"], "epochs": 0.5}}
