"""cpift run on five real sets, all stages: seconds and memory of each kind of stage, beside what the plan predicts.

The plan is measured first, by its own trial. As many rows of each set are taken as the time then allows, 2,000 at most.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inputs import model_needs, set_names
from step import Skip, Step, beside, is_cuda, need, run
from whole_run import NEEDS, Made, task_of, watched

SETS = 5
TRAIN, EVAL = 2000, 300  # rows of a set at most
FEWEST = 50
BATCH, MAX_LENGTH = 16, 512
MEMORY_GOAL, TIME_GOAL = 0.15, 0.25  # relative deviation


def work(step: Step) -> None:
    if step.model is None:
        raise Skip("needs --model, which was not given")
    names = set_names(step, SETS)
    need(*NEEDS, *model_needs(step), "cpift:plan")
    from cpift import Recipe, plan

    place = step.scratch / "five-sets"
    place.mkdir(parents=True, exist_ok=True)
    most = (16, 4) if step.tiny else (TRAIN, EVAL)
    began = time.monotonic()
    planned: Mapping[str, Any] = plan(Recipe.parse(recipe_of(step, place, names, *most)), measure=True, gpus=1)
    step.record.add("trial of the plan", time.monotonic() - began, "s")
    share = share_that_fits(planned, 0.8 * step.left())
    train, evaluate = (max(min(FEWEST, rows), int(rows * share)) for rows in most)
    step.record.add(
        "rows of each set",
        train,
        note=f"{evaluate} to score; {len(names)} sets: {', '.join(names)}; all {most[0]} would take {planned['seconds']:.0f} s",
    )
    chosen = Recipe.parse(recipe_of(step, place, names, train, evaluate))
    predicted = fixed_seconds(planned) + share * (planned["seconds"] - fixed_seconds(planned))
    if share < 1 and step.left() > 4 * (time.monotonic() - began):  # time enough to plan the chosen size itself
        planned = plan(chosen, measure=True, gpus=1)
        predicted = planned["seconds"]
    file = place / "recipe.yaml"
    file.write_text(chosen.dump(), encoding="utf-8")
    began = time.monotonic()
    _, made = watched(step, file, place / "out")
    seconds = time.monotonic() - began
    step.record.add("run: predicted time", predicted, "s", beside(seconds, predicted, TIME_GOAL))
    _memory(step, planned, made)


def recipe_of(step: Step, place: Path, names: Sequence[str], train: int, evaluate: int) -> dict[str, Any]:
    """All stages, each task a group of its own, so that the last stages freeze something. Rows are copied to ``place``."""
    assert step.data is not None
    tasks = {name: task_of(step.data / name, place, train, evaluate) for name in names}
    training = {"max_length": MAX_LENGTH, "per_device_train_batch_size": 4 if step.tiny else BATCH}
    return {
        "model": str(step.model),
        "tasks": tasks,
        "group": {"threshold": 1.0},
        "refine": {"examples_per_task": max(4, train // 10)},
        "training": training,
    }


def share_that_fits(planned: Mapping[str, Any], seconds: float) -> float:
    """Share of the rows with which the run takes so long, by a measured plan with all rows; at most 1."""
    fixed = fixed_seconds(planned)
    growing = max(planned["seconds"] - fixed, 1e-6)
    return float(min(1.0, max(0.0, seconds - fixed) / growing))


def fixed_seconds(planned: Mapping[str, Any]) -> float:
    """What of a measured plan's time does not depend on the number of rows: loading, saving, merging."""
    measured = planned["measured"]
    each = measured["train_overhead_seconds"] + measured["finish_seconds"]
    trained = sum(part["stages"] for part in planned["stages"] if "steps" in part)
    merging = sum(part["seconds"] for part in planned["stages"] if "steps" not in part)
    models = planned["evaluated_models"] * (measured["load_seconds"] + measured["guard_seconds"])
    return float(trained * each + merging + models + measured["start_seconds"] + measured["prepare_seconds"])


def _memory(step: Step, planned: Mapping[str, Any], made: Sequence[Made]) -> None:
    """The most device memory of the stages that train, beside the plan's formulas."""
    formulas = planned["gpus"]["training"]["data parallel"]
    step.record.add("planned memory of a training", formulas["peak"] / 2**30, "GiB", f"most in {formulas['stage']}")
    most = max(
        (stage.peak for stage in made if any(k in stage.kind for k in ("probe", "backbone", "refine"))), default=0
    )
    if is_cuda() and most:
        note = beside(most, formulas["peak"], MEMORY_GOAL)
        step.record.add("measured memory of a training", most / 2**30, "GiB", note)
    else:
        step.record.leave_out("measured memory of a training", "a processor has no device memory to count")


if __name__ == "__main__":
    run(work)
