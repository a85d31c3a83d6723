"""The order of rows: a mixture's batches mix the tasks, one task's are of like length; and what that costs in padding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from cpift.data.encoding import Encoded
from cpift.recipe.recipe import Recipe
from cpift.runs.stage import Run
from cpift.runs.stages.train import spec_of, train_stage
from cpift.train.config import DEFAULTS, sft_config
from cpift.train.fine_tune import _Trainer

BATCH, TASKS, EACH = 16, 4, 320
MEANS = (30, 60, 120, 240)  # tokens of a row, by task: tasks of unlike length


def mixture() -> tuple[np.ndarray, np.ndarray]:
    """Lengths and tasks of rows, task after task, as a stage has them."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.normal(mean, mean / 6, EACH).clip(4).astype(int) for mean in MEANS])
    return lengths, np.repeat(np.arange(TASKS), EACH)


def order_of(settings: Mapping[str, Any], lengths: np.ndarray, base: Path, work: Path) -> np.ndarray:
    """The order in which the trainer takes rows of these lengths."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [Encoded([5] * n, [5] * n) for n in lengths.tolist()]
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    trainer = _Trainer(model, sft_config(settings, work, 1, 0), train_dataset=data, processing_class=tokenizer)
    return np.array(list(trainer._get_train_sampler()))


def largest_share(order: np.ndarray, task: np.ndarray) -> float:
    """Mean over batches of the share that the most frequent task has."""
    return float(np.mean([np.bincount(batch).max() / BATCH for batch in task[order].reshape(-1, BATCH)]))


def padded(order: np.ndarray, lengths: np.ndarray) -> float:
    """Share of a batch's places that hold padding."""
    batches = lengths[order].reshape(-1, BATCH)
    return float(1 - batches.sum() / (batches.max(axis=1) * BATCH).sum())


def settings_of(tasks: list[str], tmp_path: Path, **more: Any) -> dict[str, Any]:
    """What a stage of these tasks trains with."""
    current = Run(Recipe.parse(tiny.recipe(tmp_path)), tmp_path / "out")
    training = {"per_device_train_batch_size": BATCH, "bf16": False, **more.pop("training", {})}
    spec = spec_of(current, training, 1, tuple(tasks), **more)
    stage = train_stage(current, "x", "probe", "", current.base, spec)
    found: dict[str, Any] = stage.settings["training"]
    return found


def test_batches_of_a_mixture_mix_the_tasks(tmp_path: Path) -> None:
    """The largest task's share is that of a plain numpy shuffle; grouped by length it is far from it."""
    settings = settings_of(["reverse", "upper"], tmp_path)
    lengths, task = mixture()
    order = order_of(settings, lengths, tmp_path / "base", tmp_path)
    assert sorted(order) == list(range(len(lengths)))
    rng = np.random.default_rng(1)
    shuffled = np.mean([largest_share(rng.permutation(len(task)), task) for _ in range(20)])
    assert largest_share(order, task) == pytest.approx(shuffled, abs=0.02)
    grouped = order_of({**settings, "train_sampling_strategy": "group_by_length"}, lengths, tmp_path / "base", tmp_path)
    assert largest_share(grouped, task) > shuffled + 0.15
    assert padded(grouped, lengths) < 0.1 < 0.5 < padded(order, lengths) < 0.65, "what mixing costs"


def test_rows_of_one_task_are_grouped_by_length(tmp_path: Path) -> None:
    """The settings stay as they were, and so do the bits and the keys of stages that are done."""
    settings = settings_of(["reverse"], tmp_path)
    assert settings == {"per_device_train_batch_size": BATCH, "bf16": False}
    assert DEFAULTS["train_sampling_strategy"] == "group_by_length"
    lengths = np.random.default_rng(0).normal(60, 20, EACH).clip(4).astype(int)
    order = order_of(settings, lengths, tmp_path / "base", tmp_path)
    assert padded(order, lengths) < padded(np.arange(EACH), lengths) / 2


@pytest.mark.parametrize(
    ("tasks", "more", "expected"),
    [
        (["reverse"], {"replay": {"upper": 4}}, "random"),
        (["reverse", "upper"], {"training": {"train_sampling_strategy": "group_by_length"}}, "group_by_length"),
        (["reverse"], {"training": {"train_sampling_strategy": "random"}}, "random"),
    ],
    ids=["replay is a mixture", "the recipe decides on a mixture", "the recipe decides on one task"],
)
def test_replay_counts_and_the_recipe_decides(
    tasks: list[str], more: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert settings_of(tasks, tmp_path, **more)["train_sampling_strategy"] == expected
