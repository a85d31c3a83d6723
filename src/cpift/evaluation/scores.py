"""Scores of a model on the tasks: exact match, generated answers, loss; one outcome an item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cpift.data.encoded import encode_rows
from cpift.data.encoding import Encoded, forced_rows
from cpift.data.templates import ChatSettings
from cpift.data.turns import stop_ids
from cpift.errors import CpiftError, OutOfMemory, is_out_of_memory
from cpift.evaluation.forced import teacher_forced
from cpift.evaluation.generation import generate
from cpift.evaluation.options import score_options
from cpift.evaluation.task import EvalTask, Score, left_out_warning, notes_message, scoring_identity
from cpift.metrics.answers import references
from cpift.metrics.metric import Scoring
from cpift.train import accelerator
from cpift.train.accelerator import frees_memory
from cpift.train.malloc import kept_memory
from cpift.train.models import load_model, load_tokenizer
from cpift.typing import Network, Tokenizer

__all__ = [
    "EvalTask",
    "Score",
    "answers",
    "evaluate",
    "forwarded_rows",
    "generate",
    "left_out_warning",
    "notes_message",
    "score_task",
    "scoring_identity",
]


@frees_memory
def evaluate(
    model: str | Path,
    tasks: Mapping[str, EvalTask],
    *,
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
    trust_remote_code: bool = False,
    chat: ChatSettings | None = None,
    base: Path | None = None,
    attention: str | None = None,
    device_map: str | None = None,
) -> dict[str, Score]:
    """Score a checkpoint, or an adapter merged into its base, on tasks by their metrics.

    On a processor in fp32; under bf16 autocast over fp32 weights on an accelerator that has it. Exact match without a
    pattern takes one teacher-forced forward, in which every token to the end of the turn must be the argmax. Where the
    prompt alone has other tokens than the prompt with its answer, or reasoning may come first, the answer is generated.

    Args:
        model: a checkpoint, or an adapter.
        tasks: what to score, by name.
        max_length: tokens of a row that a loss is taken over; None: all. Rows without any are left out and counted.
        progress: called with the number of rows done.
        trust_remote_code: run code that the model's repository carries.
        chat: what the recipe sets of the tokenizer.
        base: the base of an adapter; None: the one that it names.
        attention: transformers' name of how attention is computed; None: its choice.
        device_map: how transformers spreads the layers over several devices; None: one device.

    Raises:
        CpiftError: no row of a task has a token to score.
        OutOfMemory: names the task, the row's length and the device, where there is no memory for one row.
    """
    path = Path(model)
    network = load_model(path, trust_remote_code, base, attention, "float32", device_map)
    tokenizer = load_tokenizer(path, trust_remote_code, chat, base)
    accelerator.place(network)
    scores = {}
    with torch.inference_mode(), kept_memory(), accelerator.scoring_autocast(network):
        for name, task in tasks.items():
            try:
                score = score_task(network, tokenizer, task, max_length, progress)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                text = error if isinstance(error, OutOfMemory) else f"out of memory on {accelerator.lacking(error)}"
                shorter = "training.max_length" if task.kind.cuts_rows else f"tasks.{name}.max_new_tokens"
                raise OutOfMemory(f"{name}: {text}; leave out the longest rows, or lower {shorter}") from error
            if not score.items:
                raise CpiftError(f"tasks.{name}: {_nothing(task)}")
            scores[name] = replace(score, precision=accelerator.scoring_precision())
    return scores


def _nothing(task: EvalTask) -> str:
    if task.kind.cuts_rows:
        return "no evaluation row has a token to score; raise training.max_length"
    return f"no reply of {task.metric} could be read; look at its prompt and its model"


def forwarded_rows(
    network: Network, tokenizer: Tokenizer, task: EvalTask, max_length: int | None
) -> list[Encoded] | None:
    """The rows where one teacher-forced forward gives the score of the task; None where it must be generated."""
    if task.kind.scoring is Scoring.LOSS:
        return list(encode_rows(task.rows, tokenizer, max_length))
    if task.kind.scoring is not Scoring.EXACT:
        return None
    return forced_rows(task.rows, task.answer_pattern, tokenizer, stop_ids(tokenizer, network))


def score_task(
    network: Network,
    tokenizer: Tokenizer,
    task: EvalTask,
    max_length: int | None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Score:
    """The score of one task, of a model that is in memory."""
    if task.kind.scoring is Scoring.OPTIONS:
        return score_options(network, tokenizer, task, progress)
    encoded = forwarded_rows(network, tokenizer, task, max_length)
    if encoded is not None:
        return teacher_forced(network, tokenizer, task, encoded, progress)
    return _generated(network, tokenizer, task, progress)


def _generated(network: Network, tokenizer: Tokenizer, task: EvalTask, progress: Callable[[int], None]) -> Score:
    texts = answers(network, tokenizer, task, progress)
    judged = task.kind.judged(task.asked, [text for text, _ in texts], task.rows)
    return _of_items(task.metric, judged.items, [count for _, count in texts], judged.notes)


def answers(
    network: Network, tokenizer: Tokenizer, task: EvalTask, progress: Callable[[int], None] = lambda rows: None
) -> list[tuple[str, int]]:
    """What the model answers to each row of a task, and the number of tokens."""
    longest = task.max_new_tokens
    if task.kind.scoring is Scoring.EXACT and not task.pattern:  # the whole answer counts, however long
        longest = max(longest, *(2 * len(tokenizer(a)["input_ids"]) for row in task.rows for a in references(row)))
    return generate(network, tokenizer, task.rows, longest, progress)


def _of_items(metric: str, given: Sequence[float | None], tokens: Sequence[int], notes: Mapping[str, int]) -> Score:
    """A score of outcomes; rows that have none are left out and counted."""
    kept = [i for i, item in enumerate(given) if item is not None]
    items = [item for item in given if item is not None]
    mean = sum(items) / len(items) if items else float("nan")
    rows = kept if len(kept) < len(given) else None
    return Score(metric, mean, items, [tokens[i] for i in kept], len(given) - len(kept), rows=rows, notes=notes)
