"""Scores on tasks of lm-eval, of a model that is in memory: its prompts and metrics, one outcome an item."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from io import StringIO
from numbers import Real
from pathlib import Path
from typing import Any

from cpift.distributed.sharing import ALONE, Share
from cpift.errors import CpiftError
from cpift.evaluation.harness_batches import share_requests
from cpift.evaluation.known import Known
from cpift.evaluation.task import EvalTask, Score
from cpift.files.manifest import file_hash
from cpift.metrics import brings_rows
from cpift.metrics.lm_eval import EXTRA, PREFIX, LmEvalSettings
from cpift.metrics.packages import load, missing
from cpift.recipe.recipe import Recipe
from cpift.typing import Network, Tokenizer

_PREFERRED = ("acc_norm", "exact_match", "acc")  # of several metrics of a task; else its first
_BATCH, _BATCH_ON_DEVICE = 16, 64  # rows of a forward pass
_FEW_SHOT_SEED = 1234  # of lm-eval: it draws the examples of a prompt
_TIMED = 16  # items of a task that are scored to time it
_LIMIT = 2**26  # bytes of task files that count for a stage's key


def check_lm_eval(name: str, folder: str | None) -> None:
    """Look a task of lm-eval up, and load nothing of it.

    Args:
        name: ``lm_eval:NAME``.
        folder: of task files of one's own; None: there is none.

    Raises:
        CpiftError: lm-eval is not installed, or has no such task.
    """
    if (problem := missing("lm_eval", EXTRA)) is not None:
        raise CpiftError(f"{name}: {problem}")
    _manager(name, folder)


def check_own_rows(recipe: Recipe) -> None:
    """Look up what the recipe's tasks are scored on, where their metric has rows of its own.

    Args:
        recipe: the recipe.

    Raises:
        CpiftError: as :func:`check_lm_eval`, with the task's name.
    """
    for name, task in recipe.tasks.items():
        if task.metric is not None and brings_rows(task.metric):
            try:
                check_lm_eval(task.metric, recipe.lm_eval_tasks)
            except CpiftError as error:
                raise CpiftError(f"tasks.{name}.metric: {error}") from error


def own_rows_identity(recipe: Recipe, metric: str) -> dict[str, object]:
    """What stands for rows that a metric brings, for the key of a stage; nothing where it brings none.

    Args:
        recipe: its recipe.
        metric: of the task.
    """
    return {"lm_eval_tasks": task_files(recipe.lm_eval_tasks)} if brings_rows(metric) else {}


def score_lm_eval(
    network: Network, tokenizer: Tokenizer, task: EvalTask, share: Share = ALONE, known: Known | None = None
) -> Score:
    """The score of a task of lm-eval, or of a group of them: the mean over all items.

    Of several metrics of a task ``acc_norm`` counts, then ``exact_match``, then ``acc``, then the first; of several
    filters the first.

    Args:
        network: the model.
        tokenizer: its tokenizer, which is left as it is.
        task: its metric is ``lm_eval:NAME``.
        share: of this process; all processes get the score.
        known: of the model; what it has of lm-eval's requests is not asked for again.

    Raises:
        CpiftError: lm-eval or the task is missing, its data cannot be loaded, or no metric is a score from 0 to 1.
    """
    result, new = _evaluated(network, tokenizer, task, task.asked.chosen(LmEvalSettings).limit, share, known)
    items = [value for samples in result["samples"].values() for value in _outcomes(task.metric, samples, result)]
    if not items:
        raise CpiftError(f"{task.metric}: has no item")
    return Score(task.metric, sum(items) / len(items), items, [1] * len(items), reused=0 if new else len(items))


def seconds_of(network: Network, tokenizer: Tokenizer, task: EvalTask) -> float:
    """Time that a task of lm-eval takes, from that of its first items.

    Args:
        network: the model.
        tokenizer: its tokenizer.
        task: its metric is ``lm_eval:NAME``.

    Raises:
        CpiftError: as :func:`score_lm_eval`.
    """
    limit = task.asked.chosen(LmEvalSettings).limit
    began = time.perf_counter()
    result, _ = _evaluated(network, tokenizer, task, min(limit or _TIMED, _TIMED))
    counts = result["n-samples"].values()
    seconds = time.perf_counter() - began
    all_items: int = sum(min(count["original"], limit or count["original"]) for count in counts)
    timed: int = sum(count["effective"] for count in counts)
    return seconds * all_items / max(1, timed)


def _evaluated(
    network: Network,
    tokenizer: Tokenizer,
    task: EvalTask,
    limit: int | None,
    share: Share = ALONE,
    known: Known | None = None,
) -> tuple[Mapping[str, Any], int]:
    """What lm-eval returns, and how many of its requests were asked for."""
    manager = _manager(task.metric, task.folder)
    batch = _BATCH if network.device.type == "cpu" else _BATCH_ON_DEVICE
    with _quiet():
        model = load("lm_eval.models.huggingface", EXTRA).HFLM(
            pretrained=network, tokenizer=copy.deepcopy(tokenizer), batch_size=batch
        )
        asked = share_requests(model, batch, share, known, {**task.kind.identity(task.asked), "batch": batch})
        try:
            tasks = manager.load([task.metric.removeprefix(PREFIX)])
            for one in tasks["tasks"].values():  # as its simple_evaluate does, which returns in one process alone
                if one.get_config("num_fewshot") is None:
                    one.set_config(key="num_fewshot", value=0)
                one.set_fewshot_seed(seed=_FEW_SHOT_SEED)
            result: Mapping[str, Any] = load("lm_eval.evaluator", EXTRA).evaluate(
                model, tasks, limit=limit, bootstrap_iters=0
            )
        except (OSError, ValueError, KeyError, ImportError, ConnectionError) as error:
            said = " ".join(str(error).split())[:300]
            raise CpiftError(f"{task.metric}: lm-eval cannot evaluate it ({type(error).__name__}: {said})") from error
    return result, sum(asked)


def _outcomes(name: str, samples: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[float]:
    """One outcome a document, in the order of the documents."""
    kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    names = list(kept[0]["metrics"])
    metric = next((known for known in _PREFERRED if known in names), names[0])
    better = {key: value for sub in result["higher_is_better"].values() for key, value in sub.items()}
    found = []
    for sample in sorted(kept, key=lambda sample: int(sample["doc_id"])):
        value = sample[metric]
        score = float(value) if isinstance(value, Real) or hasattr(value, "item") else -1.0
        if not 0 <= score <= 1 or better.get(metric) is False:
            raise CpiftError(f"{name}: its metric {metric} is no score of an item from 0 to 1, where more is better")
        found.append(score)
    return found


def task_files(folder: str | None) -> dict[str, str]:
    """What stands for a folder of task files in the key of a stage: a hash of each file.

    Args:
        folder: of task files; None: there is none.
    """
    if folder is None:
        return {}
    files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file() and file.stat().st_size <= _LIMIT]
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in files}


def _manager(name: str, folder: str | None) -> Any:
    """The index of tasks that has this one: of the folder's own, or of all that lm-eval brings."""
    task = name.removeprefix(PREFIX)
    try:
        own = _index(folder, False) if folder else None
        manager = own if own is not None and task in own.all_tasks else _index(folder, True)
    except OSError as error:
        raise CpiftError(f"lm_eval_tasks: {folder} cannot be read ({error.strerror})") from error
    if task not in manager.all_tasks:
        where = f", nor does {folder}" if folder else "; lm_eval_tasks names a folder of your own tasks"
        raise CpiftError(f"{name}: lm-eval has no task {task}{where}")
    return manager


@lru_cache(maxsize=4)
def _index(folder: str | None, defaults: bool) -> Any:
    with _quiet():
        return load("lm_eval.tasks", EXTRA).TaskManager(include_path=folder, include_defaults=defaults)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's own messages and bars."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):  # where its bars go
            yield
    finally:
        logger.setLevel(before)
