"""The stages that score a model on every task of the run and on the guard set: all by one call, by one load of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpift.console.progress import Counter
from cpift.data.lengths import cut_warning, encode_measured
from cpift.distributed import ranks
from cpift.distributed.sharing import of_run
from cpift.evaluation.harness import own_rows_identity
from cpift.evaluation.known import Known
from cpift.evaluation.opened import Opened
from cpift.evaluation.scores import EvalTask, Score, evaluate, left_out_warning, notes_message, scoring_identity
from cpift.files import layout
from cpift.files.findings import Finding
from cpift.metrics import named
from cpift.metrics.metric import Scoring
from cpift.metrics.store import Store
from cpift.runs.identity import attention_of, content_of, settings_of
from cpift.runs.stage import Facts, ModelRef, Run, Stage
from cpift.runs.stages.guard import guard_stage, score_on_guard
from cpift.train.accelerator import frees_memory
from cpift.train.config import max_length

CODE = 1  # raise it when the same settings and inputs would give another result


def score_stages(run: Run, name: str, model: ModelRef, before: str) -> list[Stage]:
    """Scores of a model on every task of the run and on the guard set, where the recipe has one.

    Args:
        run: its run.
        name: what the model is called in ``scores.json``.
        model: the model.
        before: name of the model that the guard set compares it with.
    """
    tasks = [task_stage(run, name, model, task, before) for task in run.tasks]
    return [*tasks, _guard_stage(run, name, model, before)] if run.recipe.guard else tasks


def guard_stages(run: Run, models: Mapping[str, ModelRef]) -> list[Stage]:
    """Scores of models on the guard set alone; none where the recipe has no guard.

    Args:
        run: its run.
        models: by name; the first is the one that the others are compared with.
    """
    before = next(iter(models))
    return [_guard_stage(run, name, model, before) for name, model in models.items()] if run.recipe.guard else []


def _guard_stage(run: Run, name: str, model: ModelRef, before: str) -> Stage:
    return guard_stage(run, name, model, before, lambda folders: score(run, model, folders, before))


def task_stage(run: Run, name: str, model: ModelRef, task: str, before: str = "") -> Stage:
    """Scores a model on one task; stages of one model that are due are made together, by one load of it."""
    limit, asked = max_length(run.recipe.training), run.recipe.tasks[task]
    metric = run.facts(layout.rows(task))["metric"]
    settings: dict[str, Any] = {
        "metric": metric,
        "max_length": limit,
        "pattern": asked.pattern,
        "max_new_tokens": asked.max_new_tokens,
        **run.recipe.chat.identity(),
        **attention_of(run.recipe),
        **run.recipe.evaluate.identity(named(metric).scoring in (Scoring.EXACT, Scoring.GENERATED)),
        **scoring_identity(asked, metric),
        **own_rows_identity(run.recipe, metric),
        **settings_of(model, "base" if model == run.base else "model"),
    }

    needs = (layout.rows(task), *model.needs)
    return Stage(
        layout.score(name, task),
        "evaluate",
        f"score {name}",
        settings,
        needs,
        lambda folders: score(run, model, folders, before),
        f"evaluate/{name}",
        model=name,
        code=CODE,
    )


@frees_memory
def score(run: Run, model: ModelRef, folders: Mapping[str, Path], before: str = "") -> Facts:
    """Score a model on tasks and on the guard set, the rows shared out over the processes of the run.

    Args:
        run: its run.
        model: the model.
        folders: to fill, by the names of stages.
        before: name of the model that the guard set compares it with.

    Returns:
        Facts of each; nothing in a process that does not lead.
    """
    opened = Opened.by(run.recipe, model.path, model.base)
    parsed = {stage: name for stage in folders if (name := layout.parse(stage))}
    task_of = {stage: name.task for stage, name in parsed.items() if name.kind is layout.Kind.SCORE}
    facts = _score_tasks(run, model, opened, folders, task_of) if task_of else {}
    for stage, name in parsed.items():
        if name.kind is layout.Kind.GUARD:
            facts[stage] = score_on_guard(run, opened, stage, folders[stage], before)
    return facts if ranks.leads() else {}


def _score_tasks(
    run: Run, model: ModelRef, opened: Opened, folders: Mapping[str, Path], task_of: Mapping[str, str]
) -> dict[str, Mapping[str, Any]]:
    """The tasks' part of :func:`score`.

    Args:
        run: its run.
        model: the model.
        opened: the same, to be scored.
        folders: to fill, by stage.
        task_of: the task of each stage to make.
    """
    tasks = {task: eval_task(run, task) for task in task_of.values()}
    counter = Counter(run.reporter, sum(len(task.rows) for task in tasks.values()), "rows")
    scores = evaluate(
        opened,
        tasks,
        max_length=max_length(run.recipe.training),
        progress=counter,
        generation=run.recipe.evaluate.generation,
        known=_known(run, model) if ranks.leads() else None,
        share=of_run(),
    )
    facts = dict[str, Mapping[str, Any]]()
    for stage, task in task_of.items() if ranks.leads() else ():
        result = scores[task]
        (folders[stage] / layout.SCORE_FILE).write_text(json.dumps(result.to_dict()))
        for warning in _warnings(run, task, tasks[task], result, opened):
            run.add(warning.of(stage))
        if (notes := notes_message(task, result)) is not None:
            run.reporter.message(notes)
        facts[stage] = {"score": result.score, "precision": result.precision, "left_out": result.left_out}
    return facts


def _known(run: Run, model: ModelRef) -> Known | None:
    """What this run has scored of a model with the same weights before."""
    content = content_of(run, model)
    if content is None:
        return None
    settings = {
        **run.recipe.chat.identity(),
        **attention_of(run.recipe),
        **run.recipe.evaluate.identity(generates=True),
    }
    return Known(content, settings, Store(run.layout.scored))


def _warnings(run: Run, name: str, task: EvalTask, score: Score, model: Opened) -> list[Finding]:
    """Rows of a loss that are cut, or have nothing to score."""
    limit, found = max_length(run.recipe.training), list[Finding]()
    if score.left_out:
        found.append(left_out_warning(name, score, limit))
    if task.kind.cuts_rows:
        cut = cut_warning(name, encode_measured(task.rows, model.tokenizer, limit)[1], limit, evaluation=True)
        found += [cut] if cut else []
    return found


def eval_task(run: Run, task: str) -> EvalTask:
    """What :func:`cpift.evaluation.scores.evaluate` needs for a task of the run."""
    asked = run.recipe.tasks[task]
    metric = run.facts(layout.rows(task))["metric"]
    return EvalTask.of(asked, run.rows(task, "eval"), metric, run.recipe.lm_eval_tasks)
