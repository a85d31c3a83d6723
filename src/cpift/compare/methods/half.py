"""Half fine-tuning: half of each layer's matrices, drawn at random, stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpift.compare.methods.arriving import allowance, arrival
from cpift.compare.methods.method import Arrival, Method
from cpift.metrics.score import Scores

if TYPE_CHECKING:
    from cpift.compare.workbench import Work

_NAME = "half_fine_tuning"


def _half(work: Work) -> Scores:
    kept = [work.draw("half", _NAME)]
    return work.score(_NAME, work.train(f"{_NAME}/trained", work.base, work.tasks, work.budget, kept=kept))


def _half_arriving(work: Work) -> list[Arrival]:
    """Another half at every arrival."""
    arrivals, current = list[Arrival](), work.base
    for i, task in enumerate(work.tasks):
        name = f"{_NAME}/{i + 1}"
        kept = [work.draw("half", name)]
        current = work.train(f"{name}/trained", current, [task], allowance(work, task), kept=kept)
        arrivals.append(arrival(work, task, name, current, work.spent(f"{name}/")))
    return arrivals


HALF_FINE_TUNING = Method(
    name=_NAME,
    summary="multi-task SFT with half of each layer's matrices frozen, drawn at random; where tasks arrive, another half each time",
    trains="half of each layer, on all rows",
    source="HFT, arXiv:2404.18466",
    run=_half,
    arrive=_half_arriving,
)
