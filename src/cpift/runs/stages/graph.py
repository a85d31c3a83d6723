"""The method as a list of stages, in three parts: each can be listed once the part before is made."""

from __future__ import annotations

from collections.abc import Iterator

from cpift.checkpoint.hub import checkpoint_place
from cpift.files import layout
from cpift.runs.stage import ModelRef, Run, Stage
from cpift.runs.stages.arrivals import arrival_stages
from cpift.runs.stages.data import base_stage, rows_stage
from cpift.runs.stages.evaluate import score_stages
from cpift.runs.stages.fuse import fuse_stage
from cpift.runs.stages.group import group_stage
from cpift.runs.stages.identify import identify_stage
from cpift.runs.stages.refine import refine_stages
from cpift.runs.stages.train import backbone_stages, probe_stage
from cpift.runs.steps import probe_steps


def phases(run: Run, first: bool = True) -> Iterator[list[Stage]]:
    """The stages, as far as each can be known: rows first, then regions and groups, then what the groups decide.

    Args:
        run: its run.
        first: begin with the rows; False where they are there.
    """
    if first:
        yield first_stages(run)
    if run.recipe.arrivals:
        yield arrival_stages(run)
        return
    yield middle_stages(run)
    yield last_stages(run)


def first_stages(run: Run) -> list[Stage]:
    """The base, where it must be converted, and the tasks' rows."""
    base = [base_stage(run)] if run.base.stage else []
    return [*base, *(rows_stage(run, task) for task in run.tasks)]


def middle_stages(run: Run) -> list[Stage]:
    """Probes, regions and groups; the tasks' rows must be there."""
    steps = probe_steps(run)
    probes = [probe_stage(run, task, steps) for task in run.tasks]
    return [*probes, *(identify_stage(run, task) for task in run.tasks), group_stage(run)]


def last_stages(run: Run) -> list[Stage]:
    """Backbone, fusion, refinement and scores; the groups must be there."""
    groups = run.groups()
    assert groups is not None
    backbone = backbone_stages(run, groups)
    end = run.model(backbone[-1].name) if backbone else _given_backbone(run)
    fused = fuse_stage(run, end)
    refined = refine_stages(run, groups, run.model(fused.name))
    models = {layout.BASE_MODEL: run.base}
    models |= {layout.probe_model(task): run.model(layout.probe(task)) for task in run.tasks}
    if end != run.base:
        models[layout.BACKBONE_MODEL] = end
    models |= {layout.model_of(stage.name): run.model(stage.name) for stage in (fused, *refined)}
    before = layout.BASE_MODEL
    scores = [stage for name, model in models.items() for stage in score_stages(run, name, model, before)]
    return [*backbone, fused, *refined, *scores]


def _given_backbone(run: Run) -> ModelRef:
    part = run.recipe.backbone
    return run.base if part.is_base else ModelRef(checkpoint_place(part.source), base=run.base.path)
