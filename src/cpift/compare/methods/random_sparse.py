"""Random sparse training: few positions, drawn at random over the whole model, are trained, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpift.compare.methods.arriving import allowance, arrival
from cpift.compare.methods.method import Arrival, Method
from cpift.metrics.score import Scores

if TYPE_CHECKING:
    from cpift.compare.workbench import Work

_NAME = "random_sparse"


def _random_sparse(work: Work) -> Scores:
    inside = [work.draw("random", _NAME)]
    return work.score(_NAME, work.train(f"{_NAME}/trained", work.base, work.tasks, work.budget, inside=inside))


def _random_sparse_arriving(work: Work) -> list[Arrival]:
    """Other positions at every arrival."""
    arrivals, current = list[Arrival](), work.base
    for i, task in enumerate(work.tasks):
        name = f"{_NAME}/{i + 1}"
        inside = [work.draw("random", name)]
        current = work.train(f"{name}/trained", current, [task], allowance(work, task), inside=inside)
        arrivals.append(arrival(work, task, name, current, work.spent(f"{name}/")))
    return arrivals


RANDOM_SPARSE = Method(
    name=_NAME,
    summary="multi-task SFT of `region.percent` of all parameters, drawn at random; where tasks arrive, others each time",
    trains="few positions, on all rows",
    source="SpaRTA, arXiv:2502.15975",
    run=_random_sparse,
    arrive=_random_sparse_arriving,
)
