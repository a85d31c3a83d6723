"""Stages that refine: SFT on a small sample, group by group, the core regions of earlier groups frozen."""

from __future__ import annotations

from cpift.files import layout
from cpift.runs.stage import ModelRef, Run, Stage
from cpift.runs.stages.train import merged_adapter, spec_of, train_stage
from cpift.runs.steps import steps_for


def refine_stages(run: Run, groups: list[list[str]], start: ModelRef) -> list[Stage]:
    """One stage a group, each on top of the one before.

    Args:
        run: its run.
        groups: tasks by group, in the order of the stages.
        start: the fused model.
    """
    part, training, stages = run.recipe.refine, run.recipe.training_of("refine"), list[Stage]()
    for number, group in enumerate(groups, start=1):
        tasks = group if part.data == "group" else run.tasks
        rows = sum(min(part.examples_per_task, run.train_rows(task)) for task in tasks)
        frozen = [task for earlier in groups[: number - 1] for task in earlier] if part.freeze else []
        what = f"refine, stage {number} of {len(groups)}: {', '.join(tasks)}"
        if frozen:
            what += f"; frozen: {', '.join(frozen)}"
        spec = spec_of(
            run,
            training,
            steps_for(part.epochs, rows, training),
            tuple(tasks),
            examples=part.examples_per_task,
            draw=number if part.resample and part.data == "mixed" else 1,
            frozen=tuple(map(layout.region, frozen)),
            **merged_adapter(part.adapter),
        )
        stages.append(train_stage(run, layout.refine(number), "refine", what, start, spec))
        start = run.model(stages[-1].name)
    return stages
