"""Scores of a model on the guard set of a recipe: what must not be lost while the tasks are learnt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path

from cpift.data.encoding import encode
from cpift.data.row_checks import Row
from cpift.data.rows import metric_of
from cpift.data.sources import SourceFacts, file_settings, source_rows
from cpift.data.store import RowWriter
from cpift.distributed.sharing import ALONE, Share
from cpift.errors import CpiftError
from cpift.evaluation import neutral
from cpift.evaluation.drift import Comparison, Recorder
from cpift.evaluation.harness import check_lm_eval, task_files
from cpift.evaluation.opened import Opened
from cpift.evaluation.options import with_answer
from cpift.evaluation.scores import score_task
from cpift.evaluation.task import EvalTask, Score, scoring_identity
from cpift.metrics.guard import GuardEntry, drift_of
from cpift.metrics.lm_eval import identity
from cpift.metrics.metric import Scoring
from cpift.metrics.multiple_choice import MULTIPLE_CHOICE, options_of
from cpift.recipe.guard import NEUTRAL, GuardSet
from cpift.train import accelerator
from cpift.typing import Network, Tokenizer

_QUESTIONS = "general_questions.jsonl"


@dataclass(frozen=True)
class Guarded:
    """A set of the guard, its rows read.

    Attributes:
        name: of the set.
        task: what is scored; None: the neutral text.
    """

    name: str
    task: EvalTask | None


def read_guard(guard: Sequence[GuardSet], folder: str | None = None) -> list[Guarded]:
    """Read and check the rows of all sets.

    Args:
        guard: the sets of a recipe.
        folder: of task files for lm-eval.

    Raises:
        CpiftError: a file that cannot be read, or rows that do not allow the metric.
    """
    return [Guarded(entry.name, None if entry.name == NEUTRAL else _task(entry, folder)) for entry in guard]


def _task(entry: GuardSet, folder: str | None) -> EvalTask:
    if entry.built_in:
        return EvalTask(questions(), MULTIPLE_CHOICE.name)
    if entry.rows_of_metric is not None:
        try:
            check_lm_eval(entry.rows_of_metric, folder)
        except CpiftError as error:
            raise CpiftError(f"guard {error}") from error
        return EvalTask([], entry.rows_of_metric, folder=folder, settings={"limit": entry.limit})
    task, where = entry.task(), f"guard {entry.name}"
    try:
        (source,) = task.sources("eval")
        with RowWriter() as writer:
            for place, row in islice(source_rows(source, SourceFacts(source.path)), entry.limit):
                writer.add(row, place)
            rows = writer.rows()
    except CpiftError as error:
        raise CpiftError(f"{where}: {error}") from error
    try:
        return EvalTask.of(task, rows, metric_of(entry.name, task, rows))
    except CpiftError as error:
        raise CpiftError(str(error).replace(f"tasks.{entry.name}", where, 1)) from error


def questions() -> list[Row]:
    """The built-in multiple-choice questions, written for this project; each has four options."""
    lines = (files("cpift.evaluation") / _QUESTIONS).read_text(encoding="utf-8").splitlines()
    return [
        {
            "prompt": f"Question: {item['question']}\nAnswer:",
            "completion": f" {item['answer']}",
            "options": item["options"],
            "answer": item["answer"],
        }
        for item in map(json.loads, lines)
    ]


def guard_identity(guard: Sequence[GuardSet], folder: str | None = None) -> list[dict[str, object]]:
    """What decides about the scores of the guard, for the key of a stage: settings, and the content of files.

    Args:
        guard: the sets of a recipe.
        folder: of task files for lm-eval.
    """
    return [_identity(entry, folder) for entry in guard]


def _identity(entry: GuardSet, folder: str | None) -> dict[str, object]:
    if entry.built_in:
        content = neutral.text() if entry.name == NEUTRAL else json.dumps(questions())
        return {"name": entry.name, "content": hashlib.sha256(content.encode()).hexdigest()[:32]}
    if entry.rows_of_metric is not None:
        held = {"metric": entry.rows_of_metric, "limit": entry.limit, "tasks": task_files(folder)}
        return {"name": entry.name, **held, **identity()}
    task = entry.task()
    own = scoring_identity(task, task.metric) if task.metric else {}
    return {**entry.model_dump(exclude={"eval"}), "eval": file_settings(task).get("eval"), **own}


@accelerator.frees_memory
def score_guard(
    model: str | Path | Opened,
    guard: Sequence[Guarded],
    *,
    max_length: int | None = None,
    record: Path | None = None,
    before: Path | None = None,
    share: Share = ALONE,
) -> GuardEntry:
    """Score a checkpoint, or an adapter merged into its base, on the sets of a guard.

    The built-in sets are read as plain text, without a chat template. Questions that are longer than the model has
    positions for are left out; a set of which none remains is left out whole. Of several processes the first one reads the
    neutral text, a few rows, alone; all other rows are shared out.

    Args:
        model: a checkpoint, or an adapter, loaded with all settings by default; or an open one.
        guard: the sets.
        max_length: tokens of a row that a loss is taken over; None: all.
        record: where to write the logits on the neutral text, so that other models can be compared with this one.
        before: logits that another model has recorded, to measure the drift from it.
        share: of this process, where several score the model together; the first one returns the scores.
    """
    model = Opened.of(model)
    found: GuardEntry = {"scores": {}}
    with model.scoring() as network:
        for entry in guard:
            if entry.task is not None:
                score = _rows(network, model.tokenizer, entry.task, max_length, share)
            elif share.index:
                continue
            else:
                score, drift = _text(network, model.tokenizer, record, before)
                if drift is not None:
                    found["drift"] = drift_of(*drift)
            if score.items:
                found["scores"][entry.name] = replace(score, precision=model.precision).to_dict()
    return found


def _text(
    network: Network, tokenizer: Tokenizer, record: Path | None, before: Path | None
) -> tuple[Score, tuple[list[float], list[int]] | None]:
    if before is not None:
        comparison = Comparison(before, neutral.parts(network, tokenizer))
        return neutral.score_text(network, tokenizer, comparison.see), comparison.result()
    if record is None:
        return neutral.score_text(network, tokenizer), None
    recorder = Recorder()
    score = neutral.score_text(network, tokenizer, recorder.see)
    recorder.save(record)
    return score, None


def _rows(network: Network, tokenizer: Tokenizer, task: EvalTask, max_length: int | None, share: Share) -> Score:
    if task.kind.brings_rows:
        return score_task(network, tokenizer, task, max_length, share=share)
    kept = task.rows
    if task.kind.scoring is Scoring.OPTIONS:
        room = int(getattr(network.config, "max_position_embeddings", None) or 2**31)
        kept = [row for row in task.rows if longest(row, tokenizer) <= room]
    if not kept:
        return Score(task.metric, float("nan"), [], [], len(task.rows))
    score = score_task(network, tokenizer, replace(task, rows=kept), max_length, share=share)
    return replace(score, left_out=score.left_out + len(task.rows) - len(kept))


def longest(row: Row, tokenizer: Tokenizer) -> int:
    """Tokens of a multiple-choice row with its longest option."""
    return max(len(encode(with_answer(row, option), tokenizer).input_ids) for option in options_of(row))


def guard_tokens(guard: Sequence[Guarded], tokenizer: Tokenizer) -> int:
    """Tokens that a model reads to be scored on a guard; generated ones, and lm-eval's, are not counted.

    Each option counts with its question, though those that differ in their last token alone share a pass.

    Args:
        guard: the sets.
        tokenizer: the model's.
    """
    total = 0
    for entry in guard:
        if entry.task is None:
            total += sum(len(tokenizer(part.strip())["input_ids"]) for part in neutral.text().split("\n\n"))
        elif entry.task.kind.scoring is Scoring.OPTIONS:
            total += sum(
                len(encode(with_answer(row, option), tokenizer).input_ids)
                for row in entry.task.rows
                for option in options_of(row)
            )
        else:
            total += sum(len(encode(row, tokenizer).input_ids) for row in entry.task.rows)
    return total
