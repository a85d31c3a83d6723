"""The floor, the specialists, and plain fine-tuning on all tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpift.compare.methods.arriving import allowance, arrival
from cpift.compare.methods.method import Arrival, Budgeting, Method, Role
from cpift.files import layout
from cpift.metrics.score import Scores

if TYPE_CHECKING:
    from cpift.compare.workbench import Work


def _base(work: Work) -> Scores:
    return work.score(layout.BASE_MODEL, work.base)


def _single_task(work: Work) -> Scores:
    places = work.probe()
    return {task: work.score(layout.probe_model(task), place, [task])[task] for task, place in places.items()}


def _multi_task(work: Work) -> Scores:
    return work.score("multi_task", work.train("multi_task", work.base, work.tasks, work.budget))


def _multi_task_arriving(work: Work) -> list[Arrival]:
    """From the base at every arrival: as many tokens as all arrivals so far together."""
    arrivals = []
    for i, task in enumerate(work.tasks):
        seen = work.tasks[: i + 1]
        name = f"retrain/{i + 1}"
        place = work.train(name, work.base, seen, sum(allowance(work, t) for t in seen))
        arrivals.append(arrival(work, task, name, place, work.spent(name)))
    return arrivals


def _bias_only(work: Work) -> Scores:
    place = work.train("bias_only", work.base, work.tasks, work.budget, trainable="*.bias")
    return work.score("bias_only", place)


BASE = Method(
    name="base",
    summary="the model before any training: the floor",
    trains="nothing",
    source="",
    run=_base,
    role=Role.FLOOR,
    budgeting=Budgeting.NONE,
)
SINGLE_TASK = Method(
    name="single_task",
    summary="a specialist for each task, scored on its own task alone",
    trains="a model for each task",
    source="",
    run=_single_task,
    role=Role.SPECIALIST,
    budgeting=Budgeting.PROBES,
    serves_others=True,
)
MULTI_TASK = Method(
    name="multi_task",
    summary="SFT on all tasks shuffled; where tasks arrive, on everything anew each time: the upper bound, at its cost",
    trains="one model on all rows",
    source="the paper's baseline (arXiv:2508.21741)",
    run=_multi_task,
    arrive=_multi_task_arriving,
    retrains=True,
)
BIAS_ONLY = Method(
    name="bias_only",
    summary="multi-task SFT of the biases alone; refused where the model has none",
    trains="the biases, on all rows",
    source="the control of BEFT",
    run=_bias_only,
)
