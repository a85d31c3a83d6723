"""``--tune``: a learning rate for each method, chosen on rows that none is trained or evaluated on; as many trials for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cpift.compare.jobs import Job
from cpift.compare.methods import METHODS
from cpift.compare.methods.method import Budgeting
from cpift.compare.statistics import mean_score
from cpift.data.draws import rng
from cpift.data.rows import load_evaluation, load_task, metric_of
from cpift.data.store import write_jsonl
from cpift.data.twins import content_hash
from cpift.errors import CpiftError
from cpift.metrics import brings_rows
from cpift.metrics.comparison import Result, Trials
from cpift.recipe.recipe import Recipe
from cpift.recipe.task import Task
from cpift.train.config import DEFAULTS

FOLDER = "tuning"
STEP = 3.0  # between two trials, a factor
LEAST = 10  # tuning rows of a task
SHARE = 5  # at most one in so many training rows is held out


def factors(trials: int) -> list[float]:
    """What the recipe's learning rates are multiplied by, ascending: of three trials 1/3, 1, 3.

    Args:
        trials: how many; at least two.

    Raises:
        CpiftError: fewer.
    """
    if trials < 2:
        raise CpiftError(f"--tune {trials}: give the number of learning rates that each method tries, 2 or more")
    return [STEP**power for power in range(-(trials // 2), (trials + 1) // 2)]


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with the learning rate of every stage multiplied.

    Args:
        recipe: with a method's own settings.
        factor: 1 changes nothing.
    """
    if factor == 1:
        return recipe
    changes = {
        "training.learning_rate": factor * float(recipe.training.get("learning_rate", DEFAULTS["learning_rate"]))
    }
    for stage in ("probe", "backbone", "refine"):
        own = getattr(recipe, stage).training
        if "learning_rate" in own:
            changes[f"{stage}.training.learning_rate"] = factor * float(own["learning_rate"])
    return recipe.changed(changes)


def held_out(recipe: Recipe, folder: Path, seeds: Sequence[int]) -> Recipe:
    """The recipe with tuning rows in place of evaluation rows.

    They are drawn from the training rows of a seed of their own, without those that any seed is evaluated on, and are
    not trained on. A generated task has rows of that seed.

    Args:
        recipe: of the comparison.
        folder: where the rows are written, as ``TASK.train.jsonl`` and ``TASK.tuning.jsonl``.
        seeds: of the comparison.

    Raises:
        CpiftError: a task has too few rows, or its metric has rows of its own.
    """
    seed, changes = max(seeds) + 1, dict[str, object]()
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in recipe.tasks.items():
        if brings_rows(task.metric):
            raise CpiftError(
                f"tasks.{name}.metric: --tune scores held-out training rows, and {task.metric} has rows of its own, which "
                "are evaluated on; choose another metric"
            )
        if task.generate is None:
            train, tuning, metric = _split(name, task, seed, seeds)
            files = folder / f"{name}.train.jsonl", folder / f"{name}.tuning.jsonl"
            for file, rows in zip(files, (train, tuning), strict=True):
                write_jsonl(file, rows)
            kept = {"train": str(files[0].absolute()), "eval": str(files[1].absolute()), "metric": metric}
            unset = {key: Task.model_fields[key].get_default(call_default_factory=True) for key in _OF_SETS}
            changes[f"tasks.{name}"] = task.model_dump(by_alias=True) | unset | kept
    return recipe.changed({**changes, "seed": seed})


_OF_SETS = ("split", "eval_split", "train_rows", "config", "revision", "columns", "shape")


def _split(
    name: str, task: Task, seed: int, seeds: Sequence[int]
) -> tuple[list[dict[str, object]], list[dict[str, object]], str]:
    """Rows to train on, tuning rows, and the metric."""
    evaluated = {content_hash(row) for other in seeds for row in load_evaluation(name, task, other)}
    loaded = load_task(name, task, seed)
    rows = [(content_hash(row), row) for row in loaded.train]
    left = list(dict.fromkeys(key for key, _ in rows if key not in evaluated))
    count = min(len(loaded.evaluation), len(left) // SHARE)
    if count < LEAST:
        raise CpiftError(
            f"tasks.{name}: --tune needs {LEAST * SHARE} training rows that no seed is evaluated on, and there are "
            f"{len(left)}; use fewer seeds or evaluation rows"
        )
    chosen = set(rng(seed, name, "tuning").sample(left, count))
    train = [row for key, row in rows if key not in chosen and key not in evaluated]
    tuning = [next(row for key, row in rows if key == wanted) for wanted in left if wanted in chosen]
    return train, tuning, metric_of(name, task, loaded.evaluation)


def trial_jobs(jobs: Sequence[Job], trials: int) -> list[Job]:
    """Each method at each factor, on the tuning seed; methods that train nothing have no trial."""
    methods = dict.fromkeys((job.budget, job.method) for job in jobs)
    seed = max(job.seed for job in jobs) + 1
    trained = [(b, m) for b, m in methods if METHODS[m.partition(":")[0]].budgeting is not Budgeting.NONE]
    return [Job(budget, method, seed, factor) for budget, method in trained for factor in factors(trials)]


def chosen(results: Mapping[Job, Result]) -> dict[str, Trials]:
    """The trials of each method, and the factor of the highest mean score; of equal ones the lower.

    Args:
        results: of the trials.
    """
    by_method: dict[str, dict[float, float]] = {}
    for job, result in results.items():
        score = mean_score(result["scores"])
        if score is not None:
            by_method.setdefault(job.method, {})[job.factor] = score
    found: dict[str, Trials] = {}
    for method, scores in by_method.items():
        best = max(scores, key=lambda factor: (scores[factor], -factor))
        found[method] = {
            "scores": {f"{factor:.4g}": score for factor, score in sorted(scores.items())},
            "factor": best,
            "at_the_edge": best in (min(scores), max(scores)),
        }
    return found


def with_factors(jobs: Sequence[Job], tuned: Mapping[str, Trials]) -> list[Job]:
    """The jobs at their methods' factors."""
    return [replace(job, factor=tuned[job.method]["factor"]) if job.method in tuned else job for job in jobs]
