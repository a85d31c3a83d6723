"""The method itself, and its ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from cpift.compare.methods.arriving import allowance, arrival, average_of, left_of, sample
from cpift.compare.methods.method import Arrival, Budgeting, Method
from cpift.files import layout
from cpift.metrics.score import Scores

if TYPE_CHECKING:
    from cpift.compare.workbench import Work

_SOURCE = "arXiv:2508.21741"


def _cpi_ft(work: Work) -> Scores:
    place = work.cpi_ft()
    return work.score(layout.model_of(place.stage or ""), place)


def _no_refine(work: Work) -> Scores:
    place = work.cpi_ft(refine=False)
    return work.score(layout.model_of(place.stage or ""), place)


def _arriving(work: Work) -> list[Arrival]:
    """Probe the base on the new task, add its update to the model so far with its core transplanted, then refine.

    The refine stage sees the new rows and the sample of the old, the cores of all earlier tasks frozen.
    """
    arrivals, current, recipe = list[Arrival](), work.base, work.run.recipe
    for i, task in enumerate(work.tasks):
        earlier = work.tasks[:i]
        probe_tokens = work.paper_tokens([task])
        before = work.spent()
        probe = work.train(layout.probe(task), work.base, [task], probe_tokens, training=recipe.training_of("probe"))
        core = work.identify(task).stage or ""
        fused = work.add(f"incremental/{i + 1}/fused", task, probe, current) if earlier else probe
        current = work.train(
            f"incremental/{i + 1}/refined",
            fused,
            [task],
            left_of(work, task, allowance(work, task) - probe_tokens),
            replay=sample(work, earlier) or None,
            replay_share=recipe.refine.replay or None,
            frozen=earlier if earlier and recipe.refine.freeze else None,
            inside=[core] if recipe.refine.train == "inside" else [],
            anchor=recipe.refine.anchor.kl,
            average=average_of(work),
            unaveraged=[core] if recipe.fuse.transplant and recipe.refine.train == "outside" else [],
            training=recipe.training_of("refine"),
        )
        arrivals.append(arrival(work, task, f"incremental/{i + 1}", current, work.spent() - before))
    return arrivals


CPI_FT = Method(
    name="cpi_ft",
    summary="the method, as the recipe has it; `cpi_ft:KEY=VALUE,…` with other settings, such as "
    "cpi_ft:fuse.space=updates,refine.data=mixed",
    trains="probes, a backbone, and a refine stage for each group",
    source=_SOURCE,
    run=_cpi_ft,
    arrive=_arriving,
    budgeting=Budgeting.PIPELINE,
    comes_first=True,
    serves_others=True,
)


def _variant(name: str, summary: str, without: str, source: str, settings: Mapping[str, bool | str | float]) -> Method:
    """The method with other settings; where tasks arrive it is not run.

    Args:
        name: as the command line has it.
        summary: one phrase for help and docs.
        without: how a report names what it lacks.
        source: the setting, or a paper.
        settings: of the recipe.
    """
    return replace(
        CPI_FT,
        name=name,
        summary=summary,
        without=without,
        source=source,
        settings=settings,
        arrive=None,
        variant_of=CPI_FT.name,
    )


RANDOM_REGION = _variant(
    "cpi_ft_random_region",
    "as many core positions, at random: does it matter which they are?",
    "with random core positions",
    "region.by: random",
    {"region.by": "random"},
)
RANDOM_MODEL = _variant(
    "cpi_ft_random_model",
    "as many core positions, at random over the whole model: does the share of each tensor matter, too?",
    "with core positions from anywhere",
    "region.by: random_model",
    {"region.by": "random_model"},
)
INSIDE = _variant(
    "cpi_ft_inside",
    "each refine stage trains the cores of its own tasks alone",
    "refined inside the cores alone",
    "refine.train: inside; LoTA, arXiv:2406.16797",
    {"refine.train": "inside"},
)
NO_FREEZE = _variant(
    "cpi_ft_no_freeze",
    "without freezing the cores of earlier groups",
    "without freezing",
    "refine.freeze: false",
    {"refine.freeze": False},
)
NO_TRANSPLANT = _variant(
    "cpi_ft_no_transplant",
    "without transplanting cores: all positions are interpolated",
    "without transplanting",
    "fuse.transplant: false",
    {"fuse.transplant": False},
)
NO_REFINE = replace(
    CPI_FT,
    name="cpi_ft_no_refine",
    summary="the fused model, as it is",
    trains="probes and a backbone",
    run=_no_refine,
    arrive=None,
    variant_of=CPI_FT.name,
    without="without refining",
    refines=False,
)
