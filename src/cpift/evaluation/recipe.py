"""Score any checkpoint on a recipe's tasks, outside a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cpift.checkpoint.identity import content_identity
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import check_finite
from cpift.console.progress import Counter
from cpift.console.reporter import Reporter
from cpift.data.rows import answer_warnings, load_evaluation, load_rows, metric_of, sample
from cpift.distributed import ranks
from cpift.distributed.sharing import of_run
from cpift.evaluation.backends import check_backend
from cpift.evaluation.harness import check_own_rows
from cpift.evaluation.known import Known
from cpift.evaluation.opened import Opened
from cpift.evaluation.scores import EvalTask, evaluate, left_out_warning, notes_message
from cpift.files.findings import Finding
from cpift.metrics.score import ScoreEntry
from cpift.metrics.store import Store
from cpift.recipe.recipe import Recipe
from cpift.train.config import check_training, max_length


def evaluate_recipe(
    model: str | Path, recipe: Recipe, reporter: Reporter | None = None, base: Path | None = None
) -> dict[str, ScoreEntry]:
    """Scores of the checkpoint ``model``, by task, each as :class:`cpift.evaluation.scores.Score` has it.

    Args:
        model: a folder; that of an adapter is merged into its base.
        recipe: gives the tasks.
        reporter: receives warnings and progress.
        base: of an adapter; by default the one that it names.

    Raises:
        CpiftError: a checkpoint or rows that cannot be used.
    """
    reporter = reporter or Reporter()
    return score_model(Path(model), eval_tasks(recipe, reporter), recipe, reporter, base)


def eval_tasks(
    recipe: Recipe, reporter: Reporter, count: int | None = None, of_files: bool = False
) -> dict[str, EvalTask]:
    """A recipe's tasks as they are scored, by name.

    Args:
        recipe: gives the tasks.
        reporter: receives warnings.
        count: score only this number of rows of each, drawn by seed; None: all.
        of_files: the tasks have no training rows.

    Raises:
        CpiftError: rows or settings that cannot be used.
    """
    for stage in ("probe", "backbone", "refine"):
        check_training(recipe.training_of(stage), f"{stage}.training")
    check_own_rows(recipe)
    tasks = {}
    for name, task in recipe.tasks.items():
        warnings: list[Finding] = []
        if of_files:
            rows = load_evaluation(name, task, recipe.seed)
        else:
            _, rows, warnings = load_rows(name, task, recipe.seed)
        rows = rows if count is None else sample(rows, count, recipe.seed, name)
        for warning in [*warnings, *answer_warnings(name, task, rows)]:
            reporter.warning(warning.text)
        tasks[name] = EvalTask.of(task, rows, metric_of(name, task, rows), recipe.lm_eval_tasks)
        if count is not None and tasks[name].kind.brings_rows:
            tasks[name] = replace(tasks[name], settings={**task.metric_settings, "limit": count})
    return tasks


def score_model(
    model: Path,
    tasks: Mapping[str, EvalTask],
    recipe: Recipe,
    reporter: Reporter,
    base: Path | None = None,
    store: Store | None = None,
) -> dict[str, ScoreEntry]:
    """Scores of a checkpoint by task. Of several processes each scores its share of the rows; the first one has the scores.

    Args:
        model: a folder; that of an adapter is merged into its base.
        tasks: what to score.
        recipe: its chat template, length of rows and attention are used.
        reporter: receives warnings and progress.
        base: of an adapter; by default the one that it names.
        store: of earlier scores; None: every row is scored.

    Raises:
        CpiftError: a checkpoint that cannot be used.
    """
    check_backend(recipe.evaluate.backend, ranks.size())
    check_finite(open_checkpoint(model, None if base is None else open_checkpoint(base)))
    reporter.stage(str(model), f"score on {len(tasks)} tasks")
    limit = max_length(recipe.training)
    settings = {
        **recipe.chat.identity(),
        "attention": recipe.attn_implementation,
        **recipe.evaluate.identity(generates=True),
    }
    scores = evaluate(
        Opened.by(recipe, model, base),
        tasks,
        max_length=limit,
        progress=Counter(reporter, sum(len(task.rows) for task in tasks.values()), "rows"),
        generation=recipe.evaluate.generation,
        known=Known(content_identity(model, base), settings, store) if store is not None and ranks.leads() else None,
        share=of_run(),
    )
    for name, score in scores.items():
        if score.left_out:
            reporter.warning(left_out_warning(name, score, limit).text)
        if (notes := notes_message(name, score)) is not None:
            reporter.message(notes)
    if reused := sum(score.reused for score in scores.values()):
        total = sum(len(task.rows) for task in tasks.values())
        reporter.message(f"{reused} of {total} rows were scored before")
    return {name: score.to_dict() for name, score in scores.items()}
