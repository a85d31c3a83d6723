"""Score any checkpoint on a recipe's tasks, outside a run."""

from __future__ import annotations

from pathlib import Path

from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import check_finite
from cpift.console.progress import Counter
from cpift.console.reporter import Reporter
from cpift.data.rows import answer_warnings, load_rows, metric_of
from cpift.evaluation.scores import EvalTask, evaluate, left_out_warning, notes_message
from cpift.metrics.score import ScoreEntry
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
    for stage in ("probe", "backbone", "refine"):
        check_training(recipe.training_of(stage), f"{stage}.training")
    check_finite(open_checkpoint(model, None if base is None else open_checkpoint(base)))
    tasks = {}
    for name, task in recipe.tasks.items():
        _, rows, warnings = load_rows(name, task, recipe.seed)
        for warning in [*warnings, *answer_warnings(name, task, rows)]:
            reporter.warning(warning.text)
        tasks[name] = EvalTask.of(task, rows, metric_of(name, task, rows))
    reporter.stage(str(model), f"score on {len(tasks)} tasks")
    limit = max_length(recipe.training)
    scores = evaluate(
        model,
        tasks,
        max_length=limit,
        progress=Counter(reporter, sum(len(task.rows) for task in tasks.values()), "rows"),
        trust_remote_code=recipe.trust_remote_code,
        chat=recipe.chat,
        base=base,
        attention=recipe.attn_implementation,
        device_map=recipe.device_map,
    )
    for name, score in scores.items():
        if score.left_out:
            reporter.warning(left_out_warning(name, score, limit).text)
        if (notes := notes_message(name, score)) is not None:
            reporter.message(notes)
    return {name: score.to_dict() for name, score in scores.items()}
