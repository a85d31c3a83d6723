"""How long scoring takes, timed on a batch of each task."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cpift.data.encoding import encode, prompt_ids
from cpift.data.row_checks import Row
from cpift.evaluation.batching import batches, forced_room, generation_room
from cpift.evaluation.harness import seconds_of
from cpift.evaluation.opened import Opened
from cpift.evaluation.scores import answers, forwarded_rows, score_task
from cpift.evaluation.task import EvalTask
from cpift.metrics.metric import Scoring
from cpift.metrics.multiple_choice import options_of
from cpift.train.accelerator import frees_memory
from cpift.typing import Network, Tokenizer

TIMED_ROWS = 32  # answers that are generated on a processor to time it; elsewhere a batch


@frees_memory
def measure_scoring(
    model: Opened,
    tasks: Mapping[str, EvalTask],
    max_length: int | None,
) -> tuple[float, dict[str, float]]:
    """Seconds that a model takes to load, and seconds a row of each task, timed on a batch of its rows.

    Of a task whose metric has rows of its own the seconds are those of all of them.
    """
    began = time.perf_counter()
    tokenizer, _ = model.tokenizer, model.network
    loaded = time.perf_counter() - began
    found: dict[str, float] = {}
    with model.scoring() as network:
        for name, task in tasks.items():
            if task.kind.brings_rows:
                found[name] = seconds_of(network, tokenizer, task)
                continue
            options = task.kind.scoring is Scoring.OPTIONS
            forced = options or forwarded_rows(network, tokenizer, task, max_length) is not None
            rows = _a_batch(task, tokenizer, network, forced)
            some = replace(task, rows=rows)
            if not found:  # the first pass warms up
                _score(network, tokenizer, replace(task, rows=rows[:2]), max_length)
            began = time.perf_counter()
            _score(network, tokenizer, some, max_length)
            found[name] = (time.perf_counter() - began) / len(rows)
    return loaded, found


def _score(network: Network, tokenizer: Tokenizer, task: EvalTask, max_length: int | None) -> None:
    """Score a task, without what a judge would be asked."""
    if task.kind.judge_all is not None:
        answers(network, tokenizer, task)
    else:
        score_task(network, tokenizer, task, max_length)


def _a_batch(task: EvalTask, tokenizer: Tokenizer, network: Network, forced: bool) -> Sequence[Row]:
    """As many of the rows as fill a batch, and a half more where one pass does; or all of them."""
    if not forced:
        room = generation_room(network, task.max_new_tokens)
        first = next(batches([len(prompt_ids(row, tokenizer)) for row in task.rows], room))
        return task.rows[: len(first) if network.device.type != "cpu" else min(len(first), TIMED_ROWS)]
    room = forced_room(network)
    taken = 0
    for count, row in enumerate(task.rows, start=1):
        passes = len(options_of(row)) if task.kind.scoring is Scoring.OPTIONS else 1
        taken += passes * room.cost(len(encode(row, tokenizer).input_ids))
        if taken > room.nbytes * 3 // 2:
            return task.rows[:count]
    return task.rows
