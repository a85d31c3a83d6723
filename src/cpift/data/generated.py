"""Rows that reasoning_gym generates, by seed."""

from __future__ import annotations

import importlib
import json
from typing import Any

from cpift.data.draws import rng
from cpift.data.row_checks import Row
from cpift.data.twins import content_hash
from cpift.errors import CpiftError, did_you_mean
from cpift.recipe.task import Task


def generate_rows(name: str, task: Task, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and evaluation rows; a question of the evaluation rows is in no training row.

    Args:
        name: the task's name.
        task: its part of the recipe, with ``generate``.
        seed: of the recipe.

    Raises:
        CpiftError: no such generator, settings that it refuses, or too few different rows.
    """
    # Seeds far apart make the two sets: row i of a generator with seed s is row i - 1 of one with s + 1.
    assert isinstance(task.train, int)
    assert task.eval is None or isinstance(task.eval, int)
    asked = task.eval or 0  # none where the metric has rows of its own
    evaluation = _generate(name, task, asked, rng(seed, name, "eval").randrange(2**31), set()) if asked else []
    avoid = {content_hash(row) for row in evaluation}
    train = _generate(name, task, task.train, rng(seed, name, "train").randrange(2**31), avoid)
    return train, evaluation


def _generate(name: str, task: Task, count: int, seed: int, avoid: set[str]) -> list[Row]:
    gym = importlib.import_module("reasoning_gym")  # takes seconds; only tasks with generate need it
    known = importlib.import_module("reasoning_gym.factory").DATASETS
    if task.generate not in known:
        hint = did_you_mean(str(task.generate), known)
        raise CpiftError(f"tasks.{name}.generate: {task.generate!r} is no reasoning_gym task{hint}")
    rows: list[Row] = []
    try:
        source = gym.create_dataset(
            task.generate, size=4 * count + 64, seed=seed, **(task.config if isinstance(task.config, dict) else {})
        )
        for entry in source:
            messages = [
                {"role": "user", "content": entry["question"]},
                {"role": "assistant", "content": str(entry["answer"])},
            ]
            row = {"messages": messages, "answer": str(entry["answer"]), "entry": _plain(entry)}
            if content_hash(row) not in avoid:
                rows.append(row)
            if len(rows) == count:
                return rows
    except CpiftError:
        raise
    except Exception as error:  # the generators check their settings by assertions
        raise CpiftError(f"tasks.{name}.config: reasoning_gym refuses it ({error})") from error
    raise CpiftError(f"tasks.{name}: {task.generate} makes too few different rows for {count}; ask for fewer")


def _plain(value: object) -> Any:
    return json.loads(json.dumps(value, default=str))
