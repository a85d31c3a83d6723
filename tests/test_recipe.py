"""What a recipe may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.recipe.stages import Backbone, Fuse, Group, Probe, Refine, RegionPart
from cpift.recipe.task import Task

TASK = {"generate": "letter_counting", "train": 4, "eval": 2}
LEAST: dict[str, Any] = {"model": "some/model", "tasks": {"a": TASK}}


def test_defaults_are_the_papers_method() -> None:
    """One per cent, τ = 0.1, random order, multi-stage backbone, SLERP of weights per tensor, frozen cores."""
    told = Recipe.parse(LEAST).model_dump(by_alias=True)
    assert told["probe"]["steps"] == "auto"
    assert told["region"] == {
        "percent": 1.0,
        "exclude": [],
        "include": [],
        "by": "update",
        "unit": "element",
        "rows": None,
    }
    assert told["group"] == {"threshold": 0.1, "order": "random"}
    assert (told["backbone"]["from"], told["backbone"]["epochs"]) == ("multi_stage", "auto")
    assert told["fuse"] == {
        "overlap": "largest",
        "interpolation": "slerp",
        "space": "weights",
        "vector": "tensor",
        "weight": "equal",
        "transplant": True,
        "every": None,
    }
    refine = {k: told["refine"][k] for k in ("examples_per_task", "epochs", "data", "resample", "freeze")}
    assert refine == {"examples_per_task": 64, "epochs": 1.0, "data": "group", "resample": False, "freeze": True}
    assert (told["seed"], told["trust_remote_code"], told["training"]) == (0, False, {})


PARTS: dict[str, type[BaseModel]] = {
    "": Recipe, "tasks.a.": Task, "probe.": Probe, "region.": RegionPart, "group.": Group, "backbone.": Backbone,
    "fuse.": Fuse, "refine.": Refine,
}  # fmt: skip


@pytest.mark.parametrize(("where", "part"), PARTS.items(), ids=lambda v: v if isinstance(v, str) else "")
def test_every_misspelt_key_is_refused_with_the_right_one(where: str, part: type[BaseModel]) -> None:
    """At every level, for every key that there is."""
    for name, field in part.model_fields.items():
        key = field.alias or name
        wrong = key[:-1] + key[-2:-1] + key[-1] if len(key) > 4 else key + key[-1]
        data: dict[str, Any] = {**LEAST, "tasks": {"a": dict(TASK)}}
        inner = data
        for step in where.split(".")[:-1]:
            inner = inner.setdefault(step, {})
        inner[wrong] = 1
        with pytest.raises(CpiftError, match=f"unknown key '{where}{wrong}'; did you mean '{key}'"):
            Recipe.parse(data)


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
        ({"region": {"percent": -1}}, "region.percent"),
        ({"region": {"percent": float("nan")}}, "region.percent"),
        ({"group": {"threshold": -1}}, "group.threshold"),
        ({"group": {"threshold": float("nan")}}, "group.threshold"),
        ({"fuse": {"overlap": "larges"}}, "fuse.overlap: is none of largest, order, mean; did you mean 'largest'"),
        ({"fuse": {"weight": 1.5}}, "fuse.*weight must be equal or a number from 0 to 1"),
        ({"fuse": {"interpolation": "karcher", "weight": 0.5}}, "karcher takes all models alike"),
        ({"probe": {"steps": 0}}, "steps must be auto or a number from 1"),
        ({"refine": {"epochs": 0}}, "refine.epochs"),
        ({"tasks": {}}, "no task is given"),
        ({"tasks": {"a": {"train": 4, "eval": 2}}}, "nothing to generate"),
        ({"tasks": {"a": {**TASK, "eval": "x.jsonl"}}}, "numbers of rows"),
        ({"tasks": {"a": {**TASK, "eval": 0}}}, "at least one row"),
        ({"tasks": {"../a": TASK}}, "cannot be the name of a task"),
        ({"tasks": {".a": TASK}}, "cannot be the name of a task"),
        ({"tasks": {"a/b": TASK}}, "cannot be the name of a task"),
        ({"tasks": {"..": TASK}}, "cannot be the name of a task"),
        ({"tasks": {"": TASK}}, "cannot be the name of a task"),
        ({"tasks": {"a\\b": TASK}}, "cannot be the name of a task"),
        ({"tasks": {"x" * 201: TASK}}, "cannot be the name of a task"),
        ({"tasks": {"a\x00": TASK}}, "unprintable"),
        ({"tasks": {"a\u202eb": TASK}}, "unprintable"),
        ({"tasks": {"a": 3}}, "tasks.a"),
        ({"probe": None}, "probe"),
        ({"trust_remote_code": "perhaps"}, "trust_remote_code"),
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


def test_endless_epochs_are_refused() -> None:
    """A number of steps comes of them."""
    with pytest.raises(CpiftError, match=r"refine\.epochs"):
        Recipe.parse({**LEAST, "refine": {"epochs": float("inf")}})


def test_a_name_too_long_for_a_folder_is_refused() -> None:
    """A folder's name has at most 255 bytes, with the marks that a stage being made has."""
    with pytest.raises(CpiftError, match="cannot be the name of a task"):
        Recipe.parse({**LEAST, "tasks": {"漢" * 100: TASK}})


@pytest.mark.parametrize(
    "training",
    [
        pytest.param({"learning_rate": "1e-4"}, id="a rate"),
        pytest.param({"weight_decay": "1e-2"}, id="a decay"),
    ],
)
def test_a_number_that_yaml_takes_for_text_is_used_or_refused(training: dict[str, Any]) -> None:
    """1e-4 without a dot is text in YAML 1.1, and what most people write."""
    from cpift.train.config import check_training, sft_config

    try:
        check_training(training)
    except CpiftError:
        return
    config = sft_config(training, Path("unused"), 1, 0)
    assert all(isinstance(getattr(config, key), float) for key in training)


@pytest.mark.parametrize(
    "training",
    [{"run_name": __import__("datetime").date(2026, 1, 1)}, {"max_length": "x"}, {"per_device_train_batch_size": "x"}, {"learning_rate": -1.0}],
    ids=["a date", "length", "batch", "negative rate"],
)  # fmt: skip
def test_settings_of_the_wrong_kind_are_refused_before_anything_starts(training: dict[str, Any]) -> None:
    """By what is called before anything is written."""
    from cpift.train.config import check_training

    with pytest.raises(CpiftError, match=next(iter(training))):
        check_training(training)
