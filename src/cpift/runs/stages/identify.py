"""The stages that select core regions, all in one pass over the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cpift.checkpoint.reader import weight_bytes
from cpift.console.progress import Counter
from cpift.files import layout
from cpift.method.identify import identify
from cpift.method.region import Region
from cpift.method.region_findings import region_warnings
from cpift.recipe.parts import RegionPart
from cpift.runs.identity import settings_of
from cpift.runs.stage import Facts, Run, Stage

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
            for warning in region_warnings(name, region):
                run.add(warning.of(stage))
        return facts

    needs = (*run.base.needs, layout.probe(task))
    return Stage(
        layout.region(task), "identify", f"core region of {task}", settings, needs, select, "identify", code=CODE
    )


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
