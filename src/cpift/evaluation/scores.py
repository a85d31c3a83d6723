"""Scores of a model on the tasks: exact match, generated answers, loss; one outcome an item."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cpift.data.encoding import IGNORED, Encoded, encode, forced_rows, prompt_ids
from cpift.data.healing import GoOnWith, starts, text_of
from cpift.data.row_checks import Row
from cpift.data.templates import ChatSettings
from cpift.data.turns import answer_text, end_of_turn, stop_ids, turn_of
from cpift.errors import CpiftError, OutOfMemory, is_out_of_memory
from cpift.evaluation.batching import batches, forced_room, generation_room, in_batches
from cpift.files.findings import Finding, finding
from cpift.metrics import named
from cpift.metrics.answers import AnswerPattern, references
from cpift.metrics.metric import Asked, Metric, Scoring
from cpift.recipe.parts import Task
from cpift.train import accelerator
from cpift.train.accelerator import frees_memory
from cpift.train.malloc import kept_memory
from cpift.train.models import load_model, load_tokenizer

TIMED_ROWS = 32  # answers that are generated on a processor to time it; elsewhere a batch


@dataclass(frozen=True)
class EvalTask:
    """What is needed to score one task.

    Attributes:
        rows: evaluation rows.
        metric: name of the resolved metric.
        pattern: where an answer is within a text, as in a recipe.
        max_new_tokens: longest generated answer.
        generator: the reasoning_gym task that made the rows.
        match: which match of the pattern counts, ``last`` or ``first``.
    """

    rows: Sequence[Row]
    metric: str
    pattern: str | Sequence[str] | None = None
    max_new_tokens: int = 256
    generator: str | None = None
    match: str = "last"

    @classmethod
    def of(cls, task: Task, rows: Sequence[Row], metric: str) -> EvalTask:
        """Of a recipe's task, its rows and their metric."""
        return cls(rows, metric, task.pattern, task.max_new_tokens, task.generate, task.match)

    @property
    def kind(self) -> Metric:
        """The metric itself."""
        return named(self.metric)

    @property
    def answer_pattern(self) -> AnswerPattern | None:
        """Where an answer is within a text; None: the text is the answer."""
        return AnswerPattern.of(self.pattern, self.match)


def left_out_warning(name: str, score: Score, max_length: int | None) -> Finding:
    """The warning of rows that have nothing to score.

    Args:
        name: the task's name.
        score: of the task.
        max_length: tokens of a row that were used.
    """
    text = (
        f"task {name}: {score.left_out} evaluation rows have nothing to score within training.max_length {max_length} "
    )
    return finding("nothing-to-score", f"{text}and are left out")


def scoring_identity(task: Task, metric: str) -> dict[str, str]:
    """What decides about a task's scores beside the metric's name, pattern and longest answer, for the key of a stage."""
    return {**named(metric).identity(), **({} if task.match == "last" else {"match": task.match})}


@dataclass(frozen=True)
class Score:
    """A task's score. ``items``: one outcome a row, 1.0 right or 0.0 wrong, or for loss the mean loss of its tokens.

    score: mean of the items; for loss the mean over all tokens (nats). Higher is better but for loss.
    left_out: rows of a loss score that have no token to score within max_length; they are not among the items.
    precision: ``fp32``, or ``bf16 autocast`` over fp32 weights.
    """

    metric: str
    score: float
    items: list[float]
    tokens: list[int]
    left_out: int = 0
    precision: str = "fp32"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
) -> dict[str, Score]:
    """Score a checkpoint, or an adapter merged into its base: in fp32 on a processor, under bf16 autocast over fp32 weights on an accelerator that has it.

    exact_match: the greedy continuation equals the reference. Where the assistant's text is the answer, one
    teacher-forced forward is enough: every token to the end of the turn must be the argmax. Where the prompt alone
    has other tokens than the prompt with its answer, or reasoning may come first, the answer is generated and must be
    the same text; where the task has a pattern, what it extracts is compared with the row's answers. generate:
    generated, and judged after normalising, or by reasoning_gym's scorer. loss: mean negative log-likelihood of the
    assistant's tokens; rows that have none within ``max_length`` are left out and counted.

    Raises:
        CpiftError: no row of a task has a token to score.
        OutOfMemory: names the task, the row's length and the device, where there is no memory for one row.
    """
    path = Path(model)
    network = load_model(path, trust_remote_code, base)
    tokenizer = load_tokenizer(path, trust_remote_code, chat, base)
    accelerator.place(network)
    scores = {}
    with torch.inference_mode(), kept_memory(), accelerator.scoring_autocast(network):
        for name, task in tasks.items():
            try:
                score = _score(network, tokenizer, task, max_length, progress)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                text = error if isinstance(error, OutOfMemory) else f"out of memory on {accelerator.lacking(error)}"
                shorter = "training.max_length" if task.kind.cuts_rows else f"tasks.{name}.max_new_tokens"
                raise OutOfMemory(f"{name}: {text}; leave out the longest rows, or lower {shorter}") from error
            if not score.items:
                raise CpiftError(f"tasks.{name}: no evaluation row has a token to score; raise training.max_length")
            scores[name] = replace(score, precision=accelerator.scoring_precision())
    return scores


def _forced_rows(network: Any, tokenizer: Any, task: EvalTask, max_length: int | None) -> list[Encoded] | None:
    """The rows where one teacher-forced forward gives the score of the task; None where it must be generated."""
    if task.kind.scoring is Scoring.LOSS:
        return [encode(row, tokenizer, max_length) for row in task.rows]
    if task.kind.scoring is not Scoring.EXACT:
        return None
    return forced_rows(task.rows, task.answer_pattern, tokenizer, stop_ids(tokenizer, network))


def _score(
    network: Any,
    tokenizer: Any,
    task: EvalTask,
    max_length: int | None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Score:
    encoded = _forced_rows(network, tokenizer, task, max_length)
    if encoded is not None:
        return _teacher_forced(network, tokenizer, task, encoded, progress)
    return _generated(network, tokenizer, task, progress)


def _teacher_forced(
    network: Any, tokenizer: Any, task: EvalTask, encoded: list[Encoded], progress: Callable[[int], None]
) -> Score:
    items, tokens = [0.0] * len(encoded), [0] * len(encoded)
    exact = task.kind.scoring is Scoring.EXACT

    def work(batch: list[int]) -> None:
        ids, mask, labels = _padded([encoded[i] for i in batch], tokenizer.pad_token_id or 0, network.device)
        logits, first = _logits(network, ids, mask, labels)
        target = labels[:, first + 1 :]
        counted = target != IGNORED
        if exact:
            right = ((logits.argmax(-1) == target) | ~counted).all(-1) & counted.any(-1)
            values = right.double()
        else:
            values = torch.stack([_mean_loss(*row) for row in zip(logits, target, counted, strict=True)])
        for row, value, count in zip(batch, values.tolist(), counted.sum(-1).tolist(), strict=True):
            items[row], tokens[row] = value, count
        progress(len(batch))

    in_batches([len(e.input_ids) for e in encoded], forced_room(network), work)
    if exact:
        return Score(task.metric, sum(items) / len(items), items, tokens)
    kept = [i for i, count in enumerate(tokens) if count]
    items, tokens, rows = [items[i] for i in kept], [tokens[i] for i in kept], len(items)
    mean = sum(i * t for i, t in zip(items, tokens, strict=True)) / sum(tokens) if kept else float("nan")
    return Score(task.metric, mean, items, tokens, rows - len(kept))


def _logits(network: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Logits of the tokens that predict, from the first that predicts a label in any row; and its position.

    What stands before are the prompts: the head, a fifth of a small model, need not be applied to them.
    """
    labelled = (labels[:, 1:] != IGNORED).any(0).nonzero()
    first = int(labelled[0]) if len(labelled) else ids.shape[1] - 1
    if "logits_to_keep" in inspect.signature(network.forward).parameters:
        keep = ids.shape[1] - first
        return network(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits[:, :-1], first
    return network(input_ids=ids, attention_mask=mask).logits[:, first:-1], first


def _mean_loss(logits: torch.Tensor, target: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Of one row's counted tokens; only these logits are made fp32. 0 where none is counted."""
    losses = torch.nn.functional.cross_entropy(logits[counted].float(), target[counted], reduction="none")
    return losses.double().sum() / counted.sum().clamp(min=1)


def _padded(rows: list[Encoded], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [pad] * (width - len(row.input_ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (width - len(row.labels)) for row in rows])
    return ids.to(device), mask.to(device), labels.to(device)


def _generated(network: Any, tokenizer: Any, task: EvalTask, progress: Callable[[int], None]) -> Score:
    judge = task.kind.judge(Asked(task.answer_pattern, task.generator))
    longest = task.max_new_tokens
    if task.kind.scoring is Scoring.EXACT and not task.pattern:  # the whole answer counts, however long
        longest = max(longest, *(2 * len(tokenizer(a)["input_ids"]) for row in task.rows for a in references(row)))
    texts = generate(network, tokenizer, task.rows, longest, progress)
    items = [judge(text, row) for (text, _), row in zip(texts, task.rows, strict=True)]
    return Score(task.metric, sum(items) / len(items), items, [count for _, count in texts])


def generate(
    network: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[tuple[str, int]]:
    """Greedy answers to the rows' prompts, without their reasoning, to the end of the turn; their lengths in tokens.

    A turn ends at any of the model's end tokens, the tokenizer's, or the chat template's end of turn.
    """
    begun = starts(rows, tokenizer)
    prompts, ends = [start.ids for start in begun], stop_ids(tokenizer, network)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    answers: list[tuple[str, int]] = [("", 0)] * len(rows)

    def work(batch: list[int]) -> None:
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
            eos_token_id=ends or None,
            pad_token_id=pad,
            logits_processor=_held(tokenizer, [begun[i].rest for i in batch], width),
        )
        for i, new in zip(batch, out[:, width:].tolist(), strict=True):
            stop = next((at for at, token in enumerate(new) if token in ends), len(new))
            answers[i] = _answer(new[:stop], begun[i].rest, rows[i], tokenizer), stop
        progress(len(batch))

    in_batches([len(p) for p in prompts], generation_room(network, max_new_tokens), work)
    return answers


def _held(tokenizer: Any, rests: list[str], width: int) -> Any:
    """What holds the first tokens to the end of a prompt that they share a token with; None where none does."""
    from transformers import LogitsProcessorList

    return LogitsProcessorList([GoOnWith(tokenizer, rests, width)]) if any(rests) else None


def _answer(ids: list[int], rest: str, row: Row, tokenizer: Any) -> str:
    """The answer within what was generated: behind the reasoning, and behind the end of the prompt."""
    if "messages" in row or not isinstance(row["prompt"], str):
        turn = turn_of(tokenizer, row.get("chat_template_kwargs"))
        if turn.tail.strip() and end_of_turn(tokenizer) is None:  # the end of a turn is text: what follows it is none
            return str(tokenizer.decode(ids, skip_special_tokens=True)).partition(turn.tail.strip())[0]
        if turn.lead or turn.before:
            found = answer_text(tokenizer.decode(ids), turn, tokenizer.all_special_tokens)
            if found is not None:
                return found
    if rest:
        return text_of(ids, tokenizer)[len(rest) :]
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


@frees_memory
def measure_scoring(
    model: Path,
    tasks: Mapping[str, EvalTask],
    max_length: int | None,
    trust_remote_code: bool = False,
    chat: ChatSettings | None = None,
) -> tuple[float, dict[str, float]]:
    """Seconds that a model takes to load, and seconds a row of each task, timed on a batch of its rows."""
    began = time.perf_counter()
    network, tokenizer = load_model(model, trust_remote_code), load_tokenizer(model, trust_remote_code, chat)
    accelerator.place(network)
    loaded = time.perf_counter() - began
    found: dict[str, float] = {}
    with torch.inference_mode(), kept_memory(), accelerator.scoring_autocast(network):
        for name, task in tasks.items():
            forced = _forced_rows(network, tokenizer, task, max_length) is not None
            rows = _a_batch(task, tokenizer, network, forced)
            some = replace(task, rows=rows)
            if not found:  # the first pass warms up
                _score(network, tokenizer, replace(task, rows=rows[:2]), max_length)
            began = time.perf_counter()
            _score(network, tokenizer, some, max_length)
            found[name] = (time.perf_counter() - began) / len(rows)
    return loaded, found


def _a_batch(task: EvalTask, tokenizer: Any, network: Any, forced: bool) -> Sequence[Row]:
    """As many of the rows as fill a batch, and a half more where one pass does; or all of them."""
    if not forced:
        room = generation_room(network, task.max_new_tokens)
        first = next(batches([len(prompt_ids(row, tokenizer)) for row in task.rows], room))
        return task.rows[: len(first) if network.device.type != "cpu" else min(len(first), TIMED_ROWS)]
    room = forced_room(network)
    taken = 0
    for count, row in enumerate(task.rows, start=1):
        taken += room.cost(len(encode(row, tokenizer).input_ids))
        if taken > room.nbytes * 3 // 2:
            return task.rows[:count]
    return task.rows
