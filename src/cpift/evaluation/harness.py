"""Scores on tasks of lm-eval, of a model that is in memory: its prompts and metrics, one outcome an item."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from io import StringIO
from numbers import Real
from pathlib import Path
from typing import Any

from cpift.errors import CpiftError
from cpift.evaluation.task import EvalTask, Score
from cpift.files.manifest import file_hash
from cpift.metrics.lm_eval import EXTRA, PREFIX
from cpift.metrics.packages import load
from cpift.typing import Network, Tokenizer

_PREFERRED = ("acc_norm", "exact_match", "acc")  # of several metrics of a task; else its first
_BATCH, _BATCH_ON_DEVICE = 16, 64  # rows of a forward pass
_LIMIT = 2**26  # bytes of task files that count for a stage's key


def check_lm_eval(name: str, folder: str | None) -> None:
    """Look a task up, and load nothing of it.

    Args:
        name: ``lm_eval:NAME``.
        folder: of task files of one's own; None: there is none.

    Raises:
        CpiftError: lm-eval is not installed, or has no such task.
    """
    _manager(name, folder)


def score_lm_eval(network: Network, tokenizer: Tokenizer, task: EvalTask, progress: Callable[[int], None]) -> Score:
    """The score of a task of lm-eval, or of a group of them: the mean over all items.

    Of several metrics of a task ``acc_norm`` counts, then ``exact_match``, then ``acc``, then the first; of several
    filters the first.

    Args:
        network: the model.
        tokenizer: its tokenizer, which is left as it is.
        task: its metric is ``lm_eval:NAME``.
        progress: called with the number of items at the end.

    Raises:
        CpiftError: lm-eval or the task is missing, its data cannot be loaded, or no metric is a score from 0 to 1.
    """
    name = task.metric.removeprefix(PREFIX)
    manager = _manager(task.metric, task.folder)
    batch = _BATCH if network.device.type == "cpu" else _BATCH_ON_DEVICE
    with _quiet():
        model = load("lm_eval.models.huggingface", EXTRA).HFLM(
            pretrained=network, tokenizer=copy.deepcopy(tokenizer), batch_size=batch
        )
        try:
            result = load("lm_eval.evaluator", EXTRA).simple_evaluate(
                model=model,
                tasks=[name],
                task_manager=manager,
                limit=task.limit,
                bootstrap_iters=0,
                random_seed=None,  # of this process, whose trainings have seeds of their own
                numpy_random_seed=None,
                torch_random_seed=None,
            )
        except (OSError, ValueError, KeyError, ImportError, ConnectionError) as error:
            said = " ".join(str(error).split())[:300]
            raise CpiftError(f"{task.metric}: lm-eval cannot evaluate it ({type(error).__name__}: {said})") from error
    items = [value for samples in result["samples"].values() for value in _outcomes(task.metric, samples, result)]
    progress(len(task.rows))
    if not items:
        raise CpiftError(f"{task.metric}: has no item")
    return Score(task.metric, sum(items) / len(items), items, [1] * len(items))


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
