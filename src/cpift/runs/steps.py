"""How many optimizer steps each training of a run makes, and the tokens of its rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cpift.data.lengths import encode_measured
from cpift.errors import CpiftError
from cpift.files import manifest
from cpift.runs.stage import Run
from cpift.train.config import batch_rows, max_length
from cpift.train.models import load_tokenizer


class State(TypedDict):
    """What ``state.json`` holds.

    Attributes:
        probe_steps: optimizer steps of each probe.
        batch: rows of a step when they were settled; older folders lack it.
        rows: training rows of each task then.
    """

    probe_steps: int
    batch: NotRequired[int]
    rows: dict[str, int]


def probe_steps(run: Run) -> int:
    """Steps of each probe. ``auto`` is settled once in a run folder, so that a task added later has the same budget."""
    if run.recipe.probe.steps != "auto":
        return int(run.recipe.probe.steps)
    rows = {task: run.train_rows(task) for task in run.tasks}
    batch = batch_rows(run.recipe.training_of("probe"))
    steps: int = max(1, math.ceil(sum(rows.values()) / len(rows) / batch))
    file = run.layout.state
    if file.is_file():
        kept = _kept_steps(file)
        if kept.get("batch") == batch and set(kept["rows"]) != set(rows):
            if kept["probe_steps"] != steps:
                run.reporter.message(
                    f"probe.steps: auto stays at {kept['probe_steps']}, as when this run began, so that earlier probes "
                    f"stand; of all tasks it would be {steps} (--set probe.steps={steps})"
                )
            return int(kept["probe_steps"])
        if kept.get("batch") == batch and kept["rows"] == rows:
            return int(kept["probe_steps"])
    manifest.write_whole(file, json.dumps({"probe_steps": steps, "batch": batch, "rows": rows}))
    return steps


def _kept_steps(file: Path) -> State:
    try:
        kept: State = json.loads(file.read_text())
        if int(kept["probe_steps"]) < 1 or not isinstance(kept["rows"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CpiftError(f"{file}: is damaged; remove it and run again, to settle the probes' steps anew") from error
    return kept


def probe_epochs(run: Run) -> float:
    """Passes that a probe makes over the rows of the mean task: what the backbone makes over every task's."""
    rows = [run.train_rows(task) for task in run.tasks]
    return float(probe_steps(run) * batch_rows(run.recipe.training_of("probe")) / (sum(rows) / len(rows)))


def steps_for(epochs: float, rows: int, training: Mapping[str, object]) -> int:
    """Optimizer steps of a number of passes over a number of rows, at least one.

    Args:
        epochs: passes, maybe a fraction.
        rows: rows of one pass.
        training: the stage's settings, for the rows of a step.
    """
    return max(1, math.ceil(epochs * rows / batch_rows(training) - 1e-9))


def row_tokens(run: Run, task: str, training: Mapping[str, Any]) -> float:
    """Mean tokens of a training row of a task whose stage is done, as it is trained on.

    Args:
        run: its run; the base must be there.
        task: name of the task.
        training: the stage's settings, for the tokens after which a row is cut.
    """
    recipe = run.recipe
    tokenizer = load_tokenizer(run.base.path, recipe.trust_remote_code, recipe.chat)
    kept, lengths = encode_measured(run.rows(task, "train"), tokenizer, max_length(training))
    return lengths.tokens / max(1, len(kept))
