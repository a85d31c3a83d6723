"""Adding tasks to a model that is already fine-tuned, as stages: protect, then for each task train, core, average.

The model before each arrival is θ_before. It is trained on the new rows with kept rows replayed, protected positions
frozen. The new core is the top p % of |θ_trained − θ_before|. Both models are averaged outside the core and the
protected positions, where the trained values stand unchanged; at protected positions these are those before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cpift.checkpoint.identity import checkpoint_identity
from cpift.files import layout, manifest
from cpift.files.findings import finding
from cpift.method.freeze import regions_by_name
from cpift.method.region import Region
from cpift.recipe.arrivals import Protect
from cpift.recipe.recipe import Recipe
from cpift.runs.arrival_rows import arrival_steps, replayed_rows, rows_at_hand
from cpift.runs.given import GivenModel, tuned_from
from cpift.runs.identity import settings_of
from cpift.runs.stage import Facts, ModelRef, Run, Stage
from cpift.runs.stages.evaluate import score_stages
from cpift.runs.stages.fuse import CODE as FUSE_CODE
from cpift.runs.stages.fuse import fuse_into
from cpift.runs.stages.identify import CODE as IDENTIFY_CODE
from cpift.runs.stages.identify import core_stage, region_facts
from cpift.runs.stages.train import merged_adapter, spec_of, train_stage
from cpift.train.averaging import Averaging
from cpift.train.config import max_length
from cpift.train.protect import MAX_LENGTH, protect

_BY_ROWS = ("fisher", "magnitude_gradient")  # criteria that need kept rows


def arrival_stages(run: Run) -> list[Stage]:
    """All stages of the arrivals; the tasks' rows must be there."""
    arrivals = run.recipe.additions
    models = {layout.BEFORE_MODEL: run.base}
    protect = _protect(run)
    stages = [] if protect is None else [protect]
    frozen = tuple(stage.name for stage in stages)
    current = run.base
    for number, task in enumerate(arrivals.order, start=1):
        stages += _arrival(run, number, task, current, frozen)
        current = models[layout.arrival_model(number)] = run.model(stages[-1].name)
        if run.recipe.protect.freeze:
            frozen = (*frozen, layout.arrival(number, "identify"))
    for name, model in models.items():
        stages += score_stages(run, name, model, layout.BEFORE_MODEL)
    return stages


def carried_regions(model: Path) -> dict[str, Path]:
    """The region files that a model carries, by name."""
    folder = model / layout.CARRIED_REGIONS
    files = sorted(folder.glob("*.region.safetensors")) if folder.is_dir() else []
    return {file.name.removesuffix(".region.safetensors"): file for file in files}


def protected_by(recipe: Recipe, given: GivenModel) -> str:
    """What the protected region is chosen by: ``protect.by`` with ``auto`` settled."""
    known = recipe.base is not None or given.beneath is not None
    return ("update" if known else "none") if recipe.protect.by == "auto" else recipe.protect.by


def _protect(run: Run) -> Stage | None:
    """The region of the model before: its own update, and the regions that it carries. None where there is neither."""
    part, carried, given = run.recipe.protect, carried_regions(run.given.folder), run.given
    by = protected_by(run.recipe, given)
    if not part.freeze or (by == "none" and not carried):
        return None
    kept = [task for task in run.tasks if task not in run.recipe.additions.order]
    kept = kept if by in _BY_ROWS else []
    limit = max_length(run.recipe.training_of("arrivals")) or MAX_LENGTH
    settings: dict[str, object] = {"by": by, "carried": {n: manifest.file_hash(f) for n, f in carried.items()}}
    settings |= settings_of(run.base, "base")
    if by != "none":
        settings |= {"percent": str(part.percent), "unit": part.unit, "exclude": run.recipe.region.exclude}
        if run.recipe.region.include:
            settings["include"] = run.recipe.region.include
    if kept:
        settings |= {"tasks": kept, "max_length": limit, **run.recipe.chat.identity()}
    origin = tuned_from(run.recipe, given) if by == "update" else None
    if origin is not None:
        settings["tuned_from"] = checkpoint_identity(origin)

    def select(folders: Mapping[str, Path]) -> Facts:
        regions = {name: Region.load(file).detached() for name, file in carried.items()}
        if by != "none":
            own = protect(
                run.base.path,
                base=origin,
                rows=[row for task in kept for row in run.rows(task, "train")] if kept else None,
                by=by,
                percent=str(part.percent),
                unit=part.unit,
                only=run.recipe.region.include,
                exclude=run.recipe.region.exclude,
                max_length=limit,
                chat=run.recipe.chat,
                trust_remote_code=run.recipe.trust_remote_code,
                tick=lambda done, rows: run.reporter.progress(done, rows, f"{done} of {rows} rows"),
            )
            for text in own.warnings:
                run.add(finding("protected-region", text, layout.PROTECT))
            regions[""] = own.region.detached()
        joined = regions_by_name(regions, list(regions))
        assert joined is not None
        joined.save(folders[layout.PROTECT] / layout.REGION_FILE)
        return {layout.PROTECT: {**region_facts(joined), "by": by, "carried": sorted(carried)}}

    needs = (*run.base.needs, *map(layout.rows, kept))
    what = "the protected region"
    return Stage(layout.PROTECT, "identify", what, settings, needs, select, code=IDENTIFY_CODE)


def _arrival(run: Run, number: int, task: str, before: ModelRef, frozen: tuple[str, ...]) -> list[Stage]:
    """Train, identify, fuse.

    Args:
        run: its run.
        number: of the arrival, from 1.
        task: that arrives.
        before: the model that it is added to.
        frozen: stages whose regions stay bit-identical.
    """
    rows = {name: run.train_rows(name) for name in run.tasks}
    replay, recipe = replayed_rows(run.recipe, rows, number), run.recipe
    spec = spec_of(
        run,
        recipe.training_of("arrivals"),
        arrival_steps(recipe, rows, number),
        (task,),
        frozen=frozen,
        replay=replay,
        anchor=recipe.protect.anchor,
        ewc=recipe.protect.ewc,
        kept=rows_at_hand(recipe, rows, number) if recipe.protect.ewc else {},
        average=_averaging(recipe.protect),
        osf=recipe.additions.osf,
        **merged_adapter(recipe.additions.adapter),
        replay_share=recipe.protect.replay if replay else None,
    )
    train = train_stage(run, layout.arrival(number, "train"), "refine", f"add {task}", before, spec)
    core = core_stage(run, layout.arrival(number, "identify"), task, before, run.model(train.name), frozen)
    stages = [train, core]
    if recipe.additions.train == "inside":
        inside = replace(spec, inside=(core.name,))
        name = layout.arrival(number, "inside")
        stages.append(train_stage(run, name, "refine", f"add {task}, training its core alone", before, inside))
        trained = run.model(name)
        return [*stages, _average(run, number, task, before, trained, frozen, 1.0)]
    trained = run.model(train.name)
    return [*stages, _average(run, number, task, before, trained, frozen, recipe.protect.average)]


def _averaging(part: Protect) -> Averaging | None:
    """Averages while training; the one at the end is a stage of its own, which leaves the new core out."""
    if part.every is None:
        return None
    return Averaging(part.average, part.interpolation, part.every, at_end=False)


def _average(
    run: Run, number: int, task: str, before: ModelRef, trained: ModelRef, frozen: tuple[str, ...], weight: float
) -> Stage:
    """The model after an arrival, in the dtypes of the model before."""
    part, name = run.recipe.protect, layout.arrival(number, "fuse")
    unchanged = (*frozen, layout.arrival(number, "identify")) if part.transplant else frozen
    settings = {
        "task": task,
        "weight": weight,
        "interpolation": part.interpolation,
        "transplant": part.transplant,
        **settings_of(before, "base"),
    }
    # The first model before may be a merged adapter, in float32; inside a core its every bit is to stay.
    beneath = run.given.beneath if before.stage == layout.BASE and run.recipe.additions.train == "all" else None
    if beneath is not None:
        settings["stored_as"] = checkpoint_identity(beneath)

    def combine(folders: Mapping[str, Path]) -> Facts:
        regions = {stage: Region.load(run.folder(stage) / layout.REGION_FILE).detached() for stage in unchanged}
        joined = regions_by_name(regions, list(regions))
        report = fuse_into(
            folders[name],
            before.path,
            {task: trained.path},
            regions=None if joined is None else {task: joined},
            weight=weight,
            interpolation=part.interpolation,
            dtype="base",
            stored_as=beneath,
        )
        for text in report["warnings"]:
            run.add(finding("checkpoints-differ", text, name))
        return {name: {key: value for key, value in report.items() if key not in ("tensors", "warnings")}}

    what = f"average with the model before, weight {weight:g}" if weight < 1 else "take the trained model"
    needs = (*before.needs, *trained.needs, *unchanged)
    return Stage(name, "fuse", what, settings, needs, combine, writes_model=True, code=FUSE_CODE)
