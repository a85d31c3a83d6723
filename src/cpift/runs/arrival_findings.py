"""What to know of the rows that an arrival trains on: kept rows seen often, and rows that another task is scored on."""

from __future__ import annotations

from cpift.data.twins import shared_rows
from cpift.files.findings import Finding, finding
from cpift.runs.stage import Run
from cpift.train.config import batch_rows
from cpift.train.spec import TrainSpec

OFTEN = 4  # times that a kept row is seen, from which it is reported


def seen_often(spec: TrainSpec, new: int, kept: int, repeated: int) -> list[Finding]:
    """How often a training sees each kept row, where that is often.

    Args:
        spec: the training.
        new: number of rows of the task that arrives.
        kept: number of different kept rows.
        repeated: number of kept rows, their repetitions counted.
    """
    passes = spec.steps * batch_rows(spec.training) / (new + repeated)
    seen = passes * repeated / kept
    if seen < OFTEN:
        return []
    tasks, share = ", ".join(spec.replay), repeated / (new + repeated)
    text = f"each of the {kept} kept rows ({tasks}) is seen {seen:.3g} times, to be {share:.0%} of the training rows"
    return [finding("kept-rows-repeated", text)]


def scored_elsewhere(run: Run, spec: TrainSpec) -> list[Finding]:
    """Evaluation rows of one task that are training rows of another one."""
    found = []
    for trained in (*spec.tasks, *spec.replay):
        for scored in run.tasks:
            if scored == trained:
                continue  # reported where the rows are read
            rows = run.rows(scored, "eval")
            if shared := shared_rows(run.rows(trained, "train"), rows):
                text = f"task {scored}: {shared} of {len(rows)} evaluation rows also stand in the training rows of {trained}; "
                found.append(finding("evaluation-in-training", text + "its score is too good by what was memorised"))
    return found
