"""The stages that select core regions; by the size of updates, all in one pass over the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from cpift.checkpoint.reader import weight_bytes
from cpift.console.progress import Counter
from cpift.data.row_checks import Row
from cpift.data.rows import sample
from cpift.files import layout
from cpift.method.criteria import Needs
from cpift.method.criteria.choice import Choice
from cpift.method.region import Region
from cpift.method.region_findings import region_warnings
from cpift.recipe.stages import RegionPart
from cpift.runs.identity import settings_of
from cpift.runs.stage import Facts, ModelRef, Run, Stage
from cpift.train.config import max_length
from cpift.train.importance import SCORES, write_importance
from cpift.train.protect import MAX_LENGTH

Trainings = Literal["probe", "backbone", "arrivals"]
CODE = 1  # raise it when the same settings and inputs would give another result


def identify_stage(run: Run, task: str) -> Stage:
    """Selects the core region of a task, by the recipe's criterion, from the base and its probe."""
    reads = run.recipe.region.entry.needs
    settings = {**region_settings(run, "probe"), **settings_of(run.base, "base")}
    compares = reads is Needs.ALL_UPDATES
    compared = run.tasks if compares else [task]

    def select(folders: Mapping[str, Path]) -> Facts:
        names = {stage: parsed.task for stage in folders if (parsed := layout.parse(stage))}
        tuned = {name: run.folder(layout.probe(name)) for name in names.values()}
        others = {name: run.folder(layout.probe(name)) for name in run.tasks if name not in tuned and compares}
        total = weight_bytes(run.base.path, *tuned.values())
        progress = Counter(run.reporter, total)
        regions = select_regions(run, run.base.path, tuned, "probe", others, progress)
        facts = {}
        for stage, name in names.items():
            region = regions[name]
            region.save(folders[stage] / layout.REGION_FILE)
            facts[stage] = region_facts(region)
            rounded = run.recipe.dtype == "bfloat16" and run.recipe.probe.adapter is None
            for warning in region_warnings(name, region, rounded):
                run.add(warning.of(stage))
        return facts

    needs = (*run.base.needs, *map(layout.probe, compared), *([layout.rows(task)] if reads is Needs.ROWS else []))
    return Stage(
        layout.region(task), "identify", f"core region of {task}", settings, needs, select, "identify", code=CODE
    )


def core_stage(
    run: Run,
    name: str,
    task: str,
    before: ModelRef,
    after: ModelRef,
    frozen: tuple[str, ...] = (),
    training: Trainings = "arrivals",
) -> Stage:
    """Selects the core region of a task from two models that follow one another, in place of base and probe.

    Args:
        run: its run.
        name: of the stage.
        task: that the later model was trained on.
        before: the earlier model.
        after: the later model.
        frozen: stages whose regions stayed as they were; where too little moved, their positions would be filled in.
        training: the part of the recipe that says how the later model was trained.
    """
    settings = {**region_settings(run, training), **settings_of(before, "base")}

    def select(folders: Mapping[str, Path]) -> Facts:
        region = select_regions(run, before.path, {task: after.path}, training)[task]
        for stage in frozen:
            region = region.without(Region.load(run.folder(stage) / layout.REGION_FILE))
        # No base named: regions that are frozen together come from models of different times.
        replace(region, base="").save(folders[name] / layout.REGION_FILE)
        for warning in region_warnings(task, region, run.recipe.dtype == "bfloat16"):
            run.add(warning.of(name))
        return {name: region_facts(region)}

    rows = (layout.rows(task),) if run.recipe.region.entry.needs is Needs.ROWS else ()
    needs = (*before.needs, *after.needs, *frozen, *rows)
    return Stage(name, "identify", f"core region of {task}", settings, needs, select, code=CODE)


def region_settings(run: Run, training: Trainings) -> dict[str, Any]:
    """What decides about a region, apart from the two models. Newer keys count only where they are given.

    Args:
        run: its run.
        training: the part of the recipe that says how the later model was trained, for rows and how they are cut.
    """
    part, recipe = run.recipe.region, run.recipe
    settings: dict[str, Any] = {"percent": str(part.percent), "exclude": part.exclude}
    if part.include:
        settings["include"] = part.include
    if part.by != RegionPart().by:
        settings["select"] = part.by  # as the key was called first
    if part.unit != RegionPart().unit:
        settings["unit"] = part.unit
    if part.entry.needs is Needs.ROWS:
        limit = max_length(recipe.training_of(training)) or MAX_LENGTH
        settings |= {"max_length": limit, **recipe.chat.identity()}
    if part.rows is not None:
        settings["rows"] = part.rows
    if part.entry.seeded or part.rows is not None:
        settings["seed"] = recipe.seed
    return settings


def select_regions(
    run: Run,
    base: Path,
    tuned: Mapping[str, Path],
    training: Trainings,
    others: Mapping[str, Path] | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, Region]:
    """The region of each task by the recipe's criterion.

    Args:
        run: its run.
        base: the checkpoint before.
        tuned: of each task that a region is wanted of.
        training: the part of the recipe that says how these were trained.
        others: checkpoints of further tasks, for a criterion that compares.
        progress: called with the number of bytes read since the last call.
    """
    part, recipe = run.recipe.region, run.recipe

    def measure(task: str, score: str, folder: Path) -> Mapping[str, Any]:
        rows: Sequence[Row] = run.rows(task, "train")
        if part.rows is not None:
            rows = sample(rows, part.rows, recipe.seed, task)
        done = write_importance(
            tuned[task],
            rows,
            SCORES[score],
            folder,
            max_length(recipe.training_of(training)) or MAX_LENGTH,
            lambda done, rows: run.reporter.progress(done, rows, f"{done} of {rows} rows"),
            chat=recipe.chat,
            trust_remote_code=recipe.trust_remote_code,
            source=f"tasks.{task}",
        )
        return {"scores": "score", "rows": done.rows, "tokens": done.seen}

    choice = Choice(
        base,
        tuned,
        str(part.percent),
        part.include,
        part.exclude,
        part.unit,
        recipe.seed,
        others or {},
        measure,
        progress,
    )
    return part.entry.choose(choice)


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
