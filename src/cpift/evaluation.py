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
from cpift.data.healing import GoOnWith, starts, text_of
from cpift.data.templates import ChatSettings
from cpift.data.turns import answer_text, end_of_turn, stop_ids, turn_of
from cpift.encoding import IGNORED, Encoded, encode, encode_forced
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
    """

    metric: str
    score: float
    items: list[float]
    tokens: list[int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: str | Path,
    tasks: Mapping[str, EvalTask],
    *,
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
    trust_remote_code: bool = False,
    chat: ChatSettings | None = None,
) -> dict[str, Score]:
    """Score a checkpoint in fp32.

    exact_match: the greedy continuation equals the reference. Where the assistant's text is the answer, one
    teacher-forced forward is enough: every token to the end of the turn must be the argmax. Where the prompt alone
    has other tokens than the prompt with its answer, or reasoning may come first, the answer is generated and must be
    the same text; so it is where the task's pattern extracts it. generate: generated, and judged after
    normalising, or by reasoning_gym's scorer. loss: mean negative log-likelihood of the assistant's tokens.
    """
    path = Path(model)
    network, tokenizer = load_model(path, trust_remote_code), load_tokenizer(path, trust_remote_code, chat)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    network.to(device).eval()
    scores = {}
    with torch.inference_mode(), kept_memory():
        for name, task in tasks.items():
            scores[name] = _score(network, tokenizer, task, max_length, progress)
    return scores


def _forced_rows(network: Any, tokenizer: Any, task: EvalTask, max_length: int | None) -> list[Encoded] | None:
    """The rows where one teacher-forced forward gives the score of the task; None where it must be generated."""
    if task.metric == "loss":
        return [encode(row, tokenizer, max_length) for row in task.rows]
    if task.metric != "exact_match" or not all(answer_is_text(row) for row in task.rows):
        return None
    ends = stop_ids(tokenizer, network)
    forced = [encode_forced(row, tokenizer, ends) for row in task.rows]
    found = [row for row in forced if row is not None]
    return found if len(found) == len(forced) else None


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
    total = sum(tokens)
    mean = sum(i * t for i, t in zip(items, tokens, strict=True)) / total if total else float("nan")
    return Score(task.metric, mean, items, tokens)


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
    longest = task.max_new_tokens
    if task.metric == "exact_match" and task.pattern is None:  # the whole answer counts, however long
        answers = [len(tokenizer(str(row["answer"]))["input_ids"]) for row in task.rows]
        longest = max(longest, 2 * max(answers))
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
            eos_token_id=ends or None,
            pad_token_id=pad,
            logits_processor=_held(tokenizer, [begun[i].rest for i in batch], width),
        )
        for i, new in zip(batch, out[:, width:].tolist(), strict=True):
            stop = next((at for at, token in enumerate(new) if token in ends), len(new))
            answers[i] = _answer(new[:stop], begun[i].rest, rows[i], tokenizer), stop
        progress(len(batch))
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


def _judge(task: EvalTask) -> Callable[[str, Row], float]:
    if task.generator is not None and task.metric == "generate":
        import reasoning_gym

        scorer = reasoning_gym.get_score_answer_fn(task.generator)
        return lambda text, row: float(scorer(text.strip(), row["entry"]))
    pattern = re.compile(task.pattern) if task.pattern else None
    if task.metric == "exact_match" and pattern is None:  # as the teacher-forced forward judges: the text itself
        return lambda text, row: float(text.strip() == str(row["answer"]).strip())

    def judge(text: str, row: Row) -> float:
        return float(normalise(extract(text, pattern)) == normalise(str(row["answer"])))

    return judge


def extract(text: str, pattern: re.Pattern[str] | None) -> str:
    """The first group of the last match, or the whole match; the text itself without a pattern; "" without a match."""
    if pattern is None:
        return text
    found = list(pattern.finditer(text))
    if not found:
        return ""
    return found[-1].group(1) if pattern.groups else found[-1].group(0)


def normalise(text: str) -> str:
    """Case, white space, a full stop at the end and separators within numbers do not count."""
    text = " ".join(text.split()).casefold().rstrip(".").strip()
    return re.sub(r"(?<=\d),(?=\d{3})", "", text)


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
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    network.to(device).eval()
    loaded = time.perf_counter() - began
    found: dict[str, float] = {}
    with torch.inference_mode(), kept_memory():
        for name, task in tasks.items():
            forced = _forced_rows(network, tokenizer, task, max_length) is not None
            rows = _a_batch(task, tokenizer, _room(network)) if forced else task.rows[:GENERATED_ROWS]
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
