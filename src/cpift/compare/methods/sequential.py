"""Tasks that arrive one after the other, each trained on top of the model so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cpift.compare.methods.arriving import allowance, arrival, average_of, left_of, sample
from cpift.compare.methods.method import Arrival, Method
from cpift.errors import CpiftError
from cpift.recipe.arrivals import OSF_SHARE
from cpift.train.averaging import Averaging

if TYPE_CHECKING:
    from cpift.compare.workbench import Work

_TRAINS = "one model, on each task as it arrives"


def _sequential(work: Work) -> list[Arrival]:
    return _one_after_another(work, "sequential", replay=False)


def _sequential_replay(work: Work) -> list[Arrival]:
    return _one_after_another(work, "sequential_replay", replay=True)


def _osf(work: Work) -> list[Arrival]:
    return _one_after_another(work, "osf", replay=False, osf=OSF_SHARE)


def _anchored(work: Work) -> list[Arrival]:
    return _one_after_another(work, "sequential_anchor", replay=False, anchor=work.run.recipe.refine.anchor.kl)


def _sfa(work: Work) -> list[Arrival]:
    part = work.run.recipe.fuse
    average = Averaging(0.5 if part.weight == "equal" else float(part.weight), "linear", part.every)
    return _one_after_another(work, "sfa", replay=False, later={"average": average})


def _one_after_another(
    work: Work, name: str, replay: bool, later: Mapping[str, Any] | None = None, **options: Any
) -> list[Arrival]:
    """Train each task on top of the model so far.

    Args:
        work: the method's workbench.
        name: of the stages and models.
        replay: mix in the sample of the earlier tasks.
        later: options of :meth:`Work.train` from the second task on.
        options: of :meth:`Work.train`.
    """
    arrivals, current = list[Arrival](), work.base
    for i, task in enumerate(work.tasks):
        stage = f"{name}/{i + 1}"
        old = sample(work, work.tasks[:i]) or None if replay else None
        given = {**options, **(later or {} if i else {})}
        current = work.train(stage, current, [task], allowance(work, task), replay=old, **given)
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
SFA = Method(
    name="sfa",
    summary="each task's rows alone, averaged linearly with the model before at its end, and every `fuse.every` steps where "
    "given; `fuse.weight` is the share of the trained model, equal a half",
    trains=_TRAINS,
    source="arXiv:2501.05559",
    arrive=_sfa,
)
SEQUENTIAL_ANCHOR = Method(
    name="sequential_anchor",
    summary="each task's rows alone, held to the model before by the divergence (KL) on their prompts, β = 1: "
    "sequential_anchor:refine.anchor.kl=0.1 for another",
    trains=_TRAINS,
    source="refine.anchor.kl: 1; RL's Razor, arXiv:2509.04259",
    arrive=_anchored,
    settings={"refine.anchor.kl": 1.0},
)
OSF = Method(
    name="osf",
    summary="each task's rows alone, by PEFT's OSF: half of each matrix's directions, the largest, stay",
    trains="the other directions of each matrix, on each task as it arrives",
    source="arXiv:2504.07097",
    arrive=_osf,
    needs_osf=True,
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
