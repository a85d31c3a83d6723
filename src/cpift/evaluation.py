"""Scores of a model on the tasks: exact match, generated answers, loss; one outcome an item."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cpift.allocator import kept_memory
from cpift.data.answers import extract, is_right
from cpift.encoding import IGNORED, Encoded, encode, prompt_ids
from cpift.errors import CpiftError
from cpift.models import load_model, load_tokenizer
from cpift.tasks import Row, answer_is_text

BATCH_LOGITS = 200_000_000  # padded tokens × vocabulary in a batch: 0.8 GB of logits in fp32
GENERATED_ROWS = 8  # answers that are generated to time it


@dataclass(frozen=True)
class EvalTask:
    """What is needed to score one task: rows, a resolved metric, and how an answer is found in a generated text."""

    rows: Sequence[Row]
    metric: str
    pattern: str | None = None
    max_new_tokens: int = 256
    generator: str | None = None  # reasoning_gym task, whose own scorer judges metric "generate"


@dataclass(frozen=True)
class Score:
    """A task's score. ``items``: one outcome a row, 1.0 right or 0.0 wrong, or for loss the mean loss of its tokens.

    score: mean of the items; for loss the mean over all tokens (nats). Higher is better but for loss.
    left_out: rows of a loss score that have no token to score within max_length; they are not among the items.
    """

    metric: str
    score: float
    items: list[float]
    tokens: list[int]
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: str | Path,
    tasks: Mapping[str, EvalTask],
    *,
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
    trust_remote_code: bool = False,
) -> dict[str, Score]:
    """Score a checkpoint in fp32.

    exact_match: the greedy continuation equals the reference. Where the assistant's text is the answer, one
    teacher-forced forward tells: every token to the end of the turn must be the argmax. Elsewhere the
    answer is generated, extracted by the task's pattern, and compared with the row's answers. generate: generated, and
    judged after normalising, or by reasoning_gym's scorer. loss: mean negative log-likelihood of the assistant's
    tokens; rows that have none within ``max_length`` are left out and counted.
    """
    path = Path(model)
    network, tokenizer = load_model(path, trust_remote_code), load_tokenizer(path, trust_remote_code)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    network.to(device).eval()
    scores = {}
    with torch.inference_mode(), kept_memory():
        for name, task in tasks.items():
            scores[name] = _score(network, tokenizer, task, max_length, progress)
            if not scores[name].items:
                raise CpiftError(f"tasks.{name}: no evaluation row has a token to score; raise training.max_length")
    return scores


def _is_forced(task: EvalTask) -> bool:
    """Does one teacher-forced forward tell, without generating?"""
    if task.metric == "loss":
        return True
    # A pattern takes the answer out of what is generated; one of several answers may be generated in place of another.
    return task.metric == "exact_match" and not task.pattern and all(answer_is_text(row) for row in task.rows)


def _score(
    network: Any,
    tokenizer: Any,
    task: EvalTask,
    max_length: int | None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Score:
    if _is_forced(task):
        return _teacher_forced(network, tokenizer, task, max_length, progress)
    return _generated(network, tokenizer, task, progress)


def _teacher_forced(
    network: Any, tokenizer: Any, task: EvalTask, max_length: int | None, progress: Callable[[int], None]
) -> Score:
    encoded = [encode(row, tokenizer, max_length if task.metric == "loss" else None) for row in task.rows]
    if task.metric == "exact_match":
        encoded = [_to_end_of_turn(e, tokenizer.eos_token_id) for e in encoded]
    items, tokens = [0.0] * len(encoded), [0] * len(encoded)
    for batch in _batches([len(e.input_ids) for e in encoded], _room(network)):
        ids, mask, labels = _padded([encoded[i] for i in batch], tokenizer.pad_token_id or 0, network.device)
        logits = network(input_ids=ids, attention_mask=mask).logits[:, :-1]
        target = labels[:, 1:]
        counted = target != IGNORED
        if task.metric == "exact_match":
            right = ((logits.argmax(-1) == target) | ~counted).all(-1) & counted.any(-1)
            values = right.double()
        else:
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2).float(), target, ignore_index=IGNORED, reduction="none"
            )
            values = losses.double().sum(-1) / counted.sum(-1).clamp(min=1)
        for row, value, count in zip(batch, values.tolist(), counted.sum(-1).tolist(), strict=True):
            items[row], tokens[row] = value, count
        progress(len(batch))
    if task.metric == "exact_match":
        return Score(task.metric, sum(items) / len(items), items, tokens)
    kept = [i for i, count in enumerate(tokens) if count]
    items, tokens, rows = [items[i] for i in kept], [tokens[i] for i in kept], len(items)
    mean = sum(i * t for i, t in zip(items, tokens, strict=True)) / sum(tokens) if kept else float("nan")
    return Score(task.metric, mean, items, tokens, rows - len(kept))


def _to_end_of_turn(encoded: Encoded, end: int | None) -> Encoded:
    """Labels of the last turn only, up to its end token: where a greedy continuation would stop."""
    labels = encoded.labels
    last = max((i for i, label in enumerate(labels) if label != IGNORED), default=-1)
    first = last
    while first > 0 and labels[first - 1] != IGNORED:
        first -= 1
    stop = next((i for i in range(first, last + 1) if labels[i] == end), last)
    kept = [label if first <= i <= stop else IGNORED for i, label in enumerate(labels)]
    return Encoded(encoded.input_ids[: stop + 1], kept[: stop + 1])


def _room(network: Any) -> int:
    """Padded tokens that a batch may have."""
    return max(1, BATCH_LOGITS // int(network.get_output_embeddings().weight.shape[0]))


def _batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Row numbers, rows of like length together, at most ``limit`` padded tokens in a batch."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batch: list[int] = []
    for i in order:
        if batch and lengths[i] * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padded(rows: list[Encoded], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [pad] * (width - len(row.input_ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (width - len(row.labels)) for row in rows])
    return ids.to(device), mask.to(device), labels.to(device)


def _generated(network: Any, tokenizer: Any, task: EvalTask, progress: Callable[[int], None]) -> Score:
    judge = _judge(task)
    texts = generate(network, tokenizer, task.rows, task.max_new_tokens, progress)
    items = [judge(text, row) for (text, _), row in zip(texts, task.rows, strict=True)]
    return Score(task.metric, sum(items) / len(items), items, [count for _, count in texts])


def generate(
    network: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[tuple[str, int]]:
    """Greedy answers to the rows' prompts, to the end of the turn, and their lengths in tokens."""
    prompts = [prompt_ids(row, tokenizer) for row in rows]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    answers: list[tuple[str, int]] = [("", 0)] * len(rows)
    for batch in _batches([len(p) + max_new_tokens for p in prompts], _room(network)):
        width = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in batch]).to(network.device)
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch]).to(network.device)
        out = network.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        for i, new in zip(batch, out[:, width:].tolist(), strict=True):
            stop = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
            answers[i] = tokenizer.decode(new[:stop], skip_special_tokens=True), stop
        progress(len(batch))
    return answers


def _judge(task: EvalTask) -> Callable[[str, Row], float]:
    pattern = re.compile(task.pattern) if task.pattern else None
    if task.generator is not None and task.metric == "generate":
        import reasoning_gym

        scorer = reasoning_gym.get_score_answer_fn(task.generator)

        def judge_generated(text: str, row: Row) -> float:
            answer = extract(text, pattern)
            return 0.0 if answer is None else float(scorer(answer.strip(), row["entry"]))

        return judge_generated
    return lambda text, row: float(is_right(text, row, pattern))


def measure_scoring(
    model: Path, tasks: Mapping[str, EvalTask], max_length: int | None, trust_remote_code: bool = False
) -> tuple[float, dict[str, float]]:
    """Seconds that a model takes to load, and seconds a row of each task, timed on a batch of its rows."""
    began = time.perf_counter()
    network, tokenizer = load_model(model, trust_remote_code), load_tokenizer(model, trust_remote_code)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    network.to(device).eval()
    loaded = time.perf_counter() - began
    found: dict[str, float] = {}
    with torch.inference_mode(), kept_memory():
        for name, task in tasks.items():
            rows = _a_batch(task, tokenizer, _room(network)) if _is_forced(task) else task.rows[:GENERATED_ROWS]
            some = replace(task, rows=rows)
            if not found:  # the first pass warms up
                _score(network, tokenizer, replace(task, rows=rows[:2]), max_length)
            began = time.perf_counter()
            _score(network, tokenizer, some, max_length)
            found[name] = (time.perf_counter() - began) / len(rows)
    return loaded, found


def _a_batch(task: EvalTask, tokenizer: Any, room: int) -> Sequence[Row]:
    """As many of the rows as fill a batch and a half, or all of them."""
    tokens = 0
    for count, row in enumerate(task.rows, start=1):
        tokens += len(encode(row, tokenizer).input_ids)
        if tokens > room * 3 // 2:
            return task.rows[:count]
    return task.rows
