"""The probes merged by mergekit, the field's own tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cpift.compare.methods.arriving import allowance, arrival
from cpift.compare.methods.method import Arrival, Budgeting, Method
from cpift.metrics.score import Scores

if TYPE_CHECKING:
    from cpift.compare.workbench import Work
    from cpift.runs.stage import ModelRef

_TRAINS = "a model for each task"


def _merged(work: Work, method: str, parameters: Mapping[str, float]) -> Scores:
    return work.score(f"merge/{method}", work.merge(f"merge/{method}", method, work.probe(), parameters))


def _soup(work: Work) -> Scores:
    return _merged(work, "linear", {})


def _task_arithmetic(work: Work) -> Scores:
    return _merged(work, "task_arithmetic", {"weight": 2 / len(work.tasks)})


def _task_arithmetic_arriving(work: Work) -> list[Arrival]:
    """Probes of all tasks so far, each with the whole allowance, merged at every arrival."""
    arrivals: list[Arrival] = []
    probes: dict[str, ModelRef] = {}
    for i, task in enumerate(work.tasks):
        name = f"merge/probe/{task}"
        probes[task] = place = work.train(name, work.base, [task], allowance(work, task))
        if i:
            weight = {"weight": min(1.0, 2 / len(probes))}
            place = work.merge(f"merge/{i + 1}", "task_arithmetic", probes, weight)
        arrivals.append(arrival(work, task, f"merge/{i + 1}", place, work.spent(name)))
    return arrivals


def _ties(work: Work) -> Scores:
    return _merged(work, "ties", {"density": 0.2})


def _dare_ties(work: Work) -> Scores:
    return _merged(work, "dare_ties", {"density": 0.5})


SOUP = Method(
    name="soup",
    summary="the mean of the probes, by mergekit",
    trains=_TRAINS,
    source="arXiv:2203.05482",
    run=_soup,
    budgeting=Budgeting.PROBES,
    merges=True,
)
TASK_ARITHMETIC = Method(
    name="task_arithmetic",
    summary="the base and the sum of the probes' updates, each times 2/N, by mergekit; where tasks arrive, of all so far",
    trains=_TRAINS,
    source="arXiv:2212.04089",
    run=_task_arithmetic,
    arrive=_task_arithmetic_arriving,
    budgeting=Budgeting.PROBES,
    merges=True,
)
TIES = Method(
    name="ties",
    summary="TIES merging of the probes, density 0.2, by mergekit",
    trains=_TRAINS,
    source="arXiv:2306.01708",
    run=_ties,
    budgeting=Budgeting.PROBES,
    merges=True,
)
DARE_TIES = Method(
    name="dare_ties",
    summary="DARE with TIES of the probes, density 0.5, by mergekit",
    trains=_TRAINS,
    source="arXiv:2311.03099",
    run=_dare_ties,
    budgeting=Budgeting.PROBES,
    merges=True,
)
