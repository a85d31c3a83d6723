"""The simpler ways that ``cpift add --compare`` sets beside an addition: plain whatever the recipe asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from datasets import Dataset, DatasetDict

from cpift.cli.add import _held_out
from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.runs.alternatives import ALTERNATIVES
from cpift.runs.arrival_rows import arrival_steps, mixed_rows, mixed_tokens
from cpift.runs.equal_tokens import equal_epochs

BY_NAME = {alternative.name: alternative for alternative in ALTERNATIVES}


def changed(name: str, **more: Any) -> Recipe:
    """The recipe of a way, beside an addition by an adapter, inside its core, at a rate of its own."""
    recipe = Recipe.parse(
        {
            "model": "m",
            "tasks": {"old": {"train": "a.jsonl", "eval": 1}, "new": {"train": "b.jsonl", "eval": 1}},
            "arrivals": {"order": ["new"], "train": "inside", "adapter": {"type": "lora", "r": 4}, **more},
            "training": {"learning_rate": 1e-4},
        }
    )
    return recipe.changed(BY_NAME[name].changes(recipe))


@pytest.mark.parametrize("name", BY_NAME)
def test_no_way_trains_inside_a_core_or_freezes(name: str) -> None:
    recipe = changed(name)
    assert recipe.arrivals is not None
    assert recipe.arrivals.train == "all"
    assert not recipe.protect.freeze
    assert (recipe.arrivals.adapter is not None) == (name == "lora")


@pytest.mark.parametrize(("name", "factor"), [("sft", 1), ("sft_half_rate", 0.5), ("lora", 10)])
@pytest.mark.parametrize("own", [None, 3e-4])
def test_a_rate_counts_from_that_of_the_arrivals(name: str, factor: float, own: float | None) -> None:
    recipe = changed(name, **({} if own is None else {"training": {"learning_rate": own}}))
    assert recipe.training_of("arrivals")["learning_rate"] == pytest.approx(factor * (own or 1e-4))


def test_a_fifth_of_the_rows_is_held_out_and_the_test_split_is_not_needed(tmp_path: Path) -> None:
    assert _held_out("new", str(tiny.jsonl(tmp_path / "new.jsonl", tiny.rows("upper", 23, 0))), {}) == 4
    set_of_one_split = tmp_path / "set"
    DatasetDict(train=Dataset.from_list(tiny.rows("upper", 11, 0))).save_to_disk(set_of_one_split)
    assert _held_out("new", str(set_of_one_split), {}) == 2
    with pytest.raises(CpiftError, match="has 4 rows, too few"):
        _held_out("new", str(tiny.jsonl(tmp_path / "few.jsonl", tiny.rows("upper", 4, 0))), {})


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("order", [["new"], ["new", "third"]])
@pytest.mark.parametrize("train", ["all", "inside"])
def test_ways_see_as_many_tokens_as_whole_steps_allow(name: str, order: list[str], train: str) -> None:
    tasks = {task: {"train": "a.jsonl", "eval": 1} for task in ("old", *order)}
    data = {"model": "m", "tasks": tasks, "arrivals": {"order": order, "train": train}}
    recipe = Recipe.parse({**data, "training": {"per_device_train_batch_size": 4}})
    other = recipe.changed(BY_NAME[name].changes(recipe))
    rows, lengths = {"old": 9, "new": 37, "third": 53}, {"old": 30.0, "new": 20.0, "third": 25.0}
    epochs = equal_epochs(recipe, other, rows, lengths)
    steps = {n: arrival_steps(other.changed({"arrivals.epochs": epochs}), rows, n) for n in range(1, len(order) + 1)}

    def tokens(of: Recipe, number: int, count: int) -> float:  # row by row, one batch after the other
        new, kept = mixed_rows(of, rows, number)
        each, seen, left = mixed_tokens(of, rows, lengths, number) / (new + kept), 0, new + kept
        for _ in range(count):
            seen, left = seen + min(4, left), left - min(4, left)
            left = left or new + kept
        return seen * each

    numbers = range(1, len(order) + 1)
    wanted = sum(tokens(recipe, n, arrival_steps(recipe, rows, n)) for n in numbers) * (2 if train == "inside" else 1)
    spent = sum(tokens(other, n, count) for n, count in steps.items())
    step = 4 * max(lengths.values())
    assert abs(spent - wanted) <= step * (0.5 if len(order) == 1 else 1)
    if name.startswith("replay") and train == "all":
        assert (epochs, spent) == (1.0, wanted)
