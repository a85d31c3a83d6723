"""Tasks that arrive one after the other, each trained on top of the model so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpift.compare.methods.arriving import allowance, arrival, average_of, left_of, sample
from cpift.compare.methods.method import Arrival, Method
from cpift.errors import CpiftError

if TYPE_CHECKING:
    from cpift.compare.workbench import Work

_TRAINS = "one model, on each task as it arrives"


def _sequential(work: Work) -> list[Arrival]:
    return _one_after_another(work, "sequential", replay=False)


def _sequential_replay(work: Work) -> list[Arrival]:
    return _one_after_another(work, "sequential_replay", replay=True)


def _one_after_another(work: Work, name: str, replay: bool) -> list[Arrival]:
    arrivals, current = list[Arrival](), work.base
    for i, task in enumerate(work.tasks):
        stage = f"{name}/{i + 1}"
        old = sample(work, work.tasks[:i]) or None if replay else None
        current = work.train(stage, current, [task], allowance(work, task), replay=old)
        arrivals.append(arrival(work, task, stage, current, work.spent(stage)))
    return arrivals


def _cpi_ft_sequential(work: Work) -> list[Arrival]:
    """The core of a task is what its arrival moved most: no probe is needed, all tokens go into the model."""
    arrivals, current, part = list[Arrival](), work.base, work.run.recipe.refine
    if part.train == "inside":
        raise CpiftError("cpi_ft_sequential: finds a core by training outside it; leave refine.train inside to cpi_ft")
    for i, task in enumerate(work.tasks):
        earlier, name, before = work.tasks[:i], f"continued/{i + 1}", work.spent()
        trained = work.train(
            f"{name}/trained",
            current,
            [task],
            left_of(work, task, allowance(work, task)),
            replay=sample(work, earlier) or None,
            replay_share=part.replay or None,
            frozen=earlier if earlier and part.freeze else None,
            anchor=part.anchor.kl,
            average=average_of(work, at_end=False),  # what is at the end follows, with the core left out
        )
        work.core_of(task, current, trained)
        current = work.blend(f"{name}/fused", task, trained, current, earlier) if earlier else trained
        arrivals.append(arrival(work, task, name, current, work.spent() - before))
    return arrivals


SEQUENTIAL = Method(
    name="sequential",
    summary="each task's rows alone, on top of the model so far",
    trains=_TRAINS,
    source="",
    arrive=_sequential,
)
SEQUENTIAL_REPLAY = Method(
    name="sequential_replay",
    summary="the same, half of the rows being the sample of the earlier tasks",
    trains=_TRAINS,
    source="experience replay",
    arrive=_sequential_replay,
)
CPI_FT_SEQUENTIAL = Method(
    name="cpi_ft_sequential",
    summary="as sequential_replay, with the cores of all earlier tasks frozen; the new core is transplanted into the model "
    "so far, and the rest interpolated spherically between the two",
    trains=_TRAINS,
    source="ours, after arXiv:2508.21741",
    arrive=_cpi_ft_sequential,
    variant_of="cpi_ft",
    comes_first=True,
    serves_others=True,
)
