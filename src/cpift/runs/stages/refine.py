"""Stages that refine: SFT on a small sample, group by group, the core regions of earlier groups frozen."""

from __future__ import annotations

from cpift.files import layout
from cpift.runs.arrival_rows import rows_of_share
from cpift.runs.refine_rows import refined_rows, replayed
from cpift.runs.stage import ModelRef, Run, Stage
from cpift.runs.stages.train import merged_adapter, spec_of, train_stage
from cpift.runs.steps import steps_for
from cpift.train.averaging import averaging


def refine_stages(run: Run, groups: list[list[str]], start: ModelRef) -> list[Stage]:
    """One stage a group, each on top of the one before.

    Args:
        run: its run.
        groups: tasks by group, in the order of the stages.
        start: the fused model.
    """
    part, training, stages = run.recipe.refine, run.recipe.training_of("refine"), list[Stage]()
    rows = {task: run.train_rows(task) for task in run.tasks}
    for number, group in enumerate(groups, start=1):
        tasks = group if part.data == "group" else run.tasks
        frozen = [task for earlier in groups[: number - 1] for task in earlier] if part.freeze else []
        replay = replayed(run.recipe, rows, groups, number)
        seen = refined_rows(run.recipe, rows, tasks)
        seen += rows_of_share(seen, part.replay) if replay else 0
        what = f"refine, stage {number} of {len(groups)}: {', '.join(tasks)}"
        if replay:
            what += f"; replayed: {', '.join(replay)}"
        if frozen:
            what += f"; frozen: {', '.join(frozen)}"
        cores = tuple(map(layout.region, group))
        average = averaging(run.recipe.fuse)
        spec = spec_of(
            run,
            training,
            steps_for(part.epochs, seen, training),
            tuple(tasks),
            examples=part.examples_per_task,
            draw=number if part.resample and part.data == "mixed" else 1,
            frozen=tuple(map(layout.region, frozen)),
            inside=cores if part.train == "inside" else (),
            replay=replay,
            replay_share=part.replay if replay else None,
            anchor=part.anchor.kl,
            average=average,
            unaveraged=cores if average and run.recipe.fuse.transplant and part.train == "outside" else (),
            **merged_adapter(part.adapter),
        )
        stages.append(train_stage(run, layout.refine(number), "refine", what, start, spec))
        start = run.model(stages[-1].name)
    return stages
