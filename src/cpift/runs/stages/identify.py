"""The stages that select core regions, all in one pass over the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cpift.checkpoint.reader import weight_bytes
from cpift.console.progress import Counter
from cpift.files import layout
from cpift.method.identify import identify
from cpift.method.region import Region
from cpift.method.region_findings import region_warnings
from cpift.recipe.stages import RegionPart
from cpift.runs.identity import settings_of
from cpift.runs.stage import Facts, ModelRef, Run, Stage

CODE = 1  # raise it when the same settings and inputs would give another result


def identify_stage(run: Run, task: str) -> Stage:
    """Selects the core region of a task: where its probe differs most from the base."""
    settings = {**region_settings(run), **settings_of(run.base, "base")}

    def select(folders: Mapping[str, Path]) -> Facts:
        names = {stage: parsed.task for stage in folders if (parsed := layout.parse(stage))}
        tuned = {name: run.folder(layout.probe(name)) for name in names.values()}
        total = weight_bytes(run.base.path, *tuned.values())
        regions = select_regions(run, run.base.path, tuned, Counter(run.reporter, total))
        facts = {}
        for stage, name in names.items():
            region = regions[name]
            region.save(folders[stage] / layout.REGION_FILE)
            facts[stage] = region_facts(region)
            rounded = run.recipe.dtype == "bfloat16" and run.recipe.probe.adapter is None
            for warning in region_warnings(name, region, rounded):
                run.add(warning.of(stage))
        return facts

    needs = (*run.base.needs, layout.probe(task))
    return Stage(
        layout.region(task), "identify", f"core region of {task}", settings, needs, select, "identify", code=CODE
    )


def core_stage(
    run: Run, name: str, task: str, before: ModelRef, after: ModelRef, frozen: tuple[str, ...] = ()
) -> Stage:
    """Selects the core region of a task from two models that follow one another, in place of base and probe.

    Args:
        run: its run.
        name: of the stage.
        task: that the later model was trained on.
        before: the earlier model.
        after: the later model.
        frozen: stages whose regions stayed as they were; where too little moved, their positions would be filled in.
    """
    settings = {**region_settings(run), **settings_of(before, "base")}

    def select(folders: Mapping[str, Path]) -> Facts:
        region = select_regions(run, before.path, {task: after.path})[task]
        for stage in frozen:
            region = region.without(Region.load(run.folder(stage) / layout.REGION_FILE))
        # No base named: regions that are frozen together come from models of different times.
        replace(region, base="").save(folders[name] / layout.REGION_FILE)
        for warning in region_warnings(task, region, run.recipe.dtype == "bfloat16"):
            run.add(warning.of(name))
        return {name: region_facts(region)}

    needs = (*before.needs, *after.needs, *frozen)
    return Stage(name, "identify", f"core region of {task}", settings, needs, select, code=CODE)


def region_settings(run: Run) -> dict[str, Any]:
    """What decides about a region, apart from the two models."""
    part = run.recipe.region
    chosen = {} if part.select == RegionPart().select else {"select": part.select}
    seed = {"seed": run.recipe.seed} if part.entry.seeded else {}
    return {"percent": str(part.percent), "exclude": part.exclude, **chosen, **seed}


def select_regions(
    run: Run, base: Path, tuned: Mapping[str, Path], progress: Callable[[int], None] = lambda nbytes: None
) -> dict[str, Region]:
    """The region of each task as the recipe wants it: where it moved most, or as many positions at random."""
    part = run.recipe.region
    largest = identify(base, tuned, str(part.percent), exclude=part.exclude, progress=progress)
    return {name: part.entry.choose(region, f"{run.recipe.seed}/{name}") for name, region in largest.items()}


def region_facts(region: Region) -> dict[str, Any]:
    """What the report shows of a region: size, threshold to median, share of zero updates, counts per parameter."""
    return {
        "count": region.count,
        "total": region.total,
        "threshold": region.threshold,
        **region.statistics,
        "by_parameter": region.counts(),
        "sizes": {name: math.prod(shape) for name, shape in region.shapes.items()},
    }
