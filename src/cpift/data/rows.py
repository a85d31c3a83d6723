"""Data in: rows of a task from a file, the hub or a generator, checked, split and sampled by seed.

A row is ``{"messages": [...]}`` or ``{"prompt": ..., "completion": ...}``, as TRL takes them, with an optional ``answer``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cpift.data.files import JSON_LINES, read_file
from cpift.data.row_keys import MESSAGE_METADATA, check_row_keys
from cpift.data.sources import read_source, weighted
from cpift.errors import CpiftError, did_you_mean
from cpift.files.findings import Finding, finding
from cpift.metrics import WITH_ANSWERS, WITHOUT_ANSWERS, named
from cpift.metrics.answers import composed, references, response, turns
from cpift.metrics.metric import Asked
from cpift.recipe.parts import Source, Task

Row = dict[str, Any]


@dataclass(frozen=True)
class Used:
    """One source of a task's training rows, and how many of them are used."""

    path: str
    rows: int
    """Rows for training that it holds."""
    used: int
    """Training rows that its weight makes of them, before ``train_rows`` draws from all."""


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task."""

    train: list[Row]
    evaluation: list[Row]
    warnings: list[Finding]
    shapes: dict[str, int]
    """How many rows were given in each shape; generated ones have none."""
    sources: list[Used]


def load_rows(name: str, task: Task, seed: int) -> tuple[list[Row], list[Row], list[Finding]]:
    """Training rows, evaluation rows, and warnings: :func:`load_task`, without the facts about them."""
    found = load_task(name, task, seed)
    return found.train, found.evaluation, found.warnings


def load_task(name: str, task: Task, seed: int) -> TaskRows:
    """The rows of a task, and what is known of where they come from.

    Args:
        name: the task's name.
        task: its part of the recipe.
        seed: of what is drawn.

    Raises:
        CpiftError: a missing or malformed file (file and line), an empty set, a row with no assistant turn.
    """
    warnings: list[Finding] = []
    shapes: Counter[str] = Counter()
    used: list[Used] = []
    if task.generate is not None:
        train, evaluation = _generated(name, task, seed)
    else:
        parts = _loaded(name, task, "train", shapes, warnings)
        rows = [row for _, part in parts for row in part]
        held_out: set[int] = set()
        if isinstance(task.eval, int):
            if len(rows) <= task.eval:
                told = ", ".join(source.path for source, _ in parts)
                raise CpiftError(f"tasks.{name}: eval is {task.eval}, but {told} has only {len(rows)} rows")
            held_out = set(_rng(seed, name, "split").sample(range(len(rows)), task.eval))
            evaluation = [row for i, row in enumerate(rows) if i in held_out]
        else:
            evaluation = [row for _, part in _loaded(name, task, "eval", shapes, warnings) for row in part]
        train, first = [], 0
        for i, (source, part) in enumerate(parts):
            left = [row for at, row in enumerate(part, start=first) if at not in held_out]
            first += len(part)
            # Held-out rows are taken away before any row is repeated.
            counted = left if source.weight == 1 else weighted(left, source.weight, _rng(seed, name, f"weight {i}"))
            train += counted
            used.append(Used(source.path, len(left), len(counted)))
        if not train:
            raise CpiftError(f"tasks.{name}: the weights leave no training row")
    if task.train_rows is not None:
        if task.train_rows > len(train):
            text = f"task {name}: train_rows is {task.train_rows}, there are only {len(train)}; all are used"
            warnings.append(finding("few-rows", text))
        train = sample(train, task.train_rows, seed, name)
    known = {_content(row) for row in train}
    shared = sum(_content(row) in known for row in evaluation)
    if shared:
        text = f"task {name}: {shared} of {len(evaluation)} evaluation rows also stand in the training rows; "
        warnings.append(finding("evaluation-in-training", text + "its score is too good by what was memorised"))
    return TaskRows(train, evaluation, warnings, dict(shapes), used)


def _loaded(
    name: str, task: Task, part: Literal["train", "eval"], shapes: Counter[str], warnings: list[Finding]
) -> list[tuple[Source, list[Row]]]:
    """The checked rows of each source of a part; what is to be known of them is added to the last two arguments."""
    parts = []
    for source in task.sources(part):
        try:
            loaded = read_source(source)
            rows = [check_row(row, where) for where, row in loaded.rows]
        except CpiftError as error:
            raise CpiftError(f"tasks.{name}: {error}") from error
        shapes.update(loaded.shapes)
        if loaded.empty:
            where = _shown(source.path)
            text = f"task {name}: {loaded.empty} rows of {where} have an empty response and were left out"
            warnings.append(finding("empty-responses", text))
        parts.append((source, rows))
    return parts


def _shown(path: str) -> str:
    """A hub id as it is, of a local path the file's name only."""
    return Path(path).name if path.startswith(("/", "~", ".")) or os.path.exists(path.partition("#")[0]) else path


def metric_of(name: str, task: Task, rows: Sequence[Row]) -> str:
    """The task's metric, with the default resolved.

    Args:
        name: the task's name, for messages.
        task: its part of the recipe.
        rows: its evaluation rows.

    Raises:
        CpiftError: the rows do not allow the metric, or have answers only in part; a pattern without answers.
    """
    known = named(task.metric) if task.metric else None
    answered = sum(_has_answer(name, row) for row in rows) if known is None or known.needs_answer else 0
    metric = known or (WITH_ANSWERS if answered else WITHOUT_ANSWERS)
    instead = f"use metric: {WITHOUT_ANSWERS.name}"
    if known is None and task.pattern is not None and not answered:
        raise CpiftError(
            f"tasks.{name}: has a pattern, but its evaluation rows have no answer to compare with; add an answer to "
            f"each row (columns: {{answer: …}} names its column), or {instead}"
        )
    if metric.needs_answer and answered < len(rows):
        raise CpiftError(
            f"tasks.{name}: metric {metric.name} needs an answer in each evaluation row, and {len(rows) - answered} of "
            f"{len(rows)} have none; or {instead}"
        )
    if not metric.cuts_rows and any(turns(row)[-1]["role"] != "assistant" for row in rows):
        raise CpiftError(f"tasks.{name}: metric {metric.name} needs the assistant's turn last in each evaluation row")
    asked = Asked(task.answer_pattern, task.generate, explicit=known is not None)
    if (problem := metric.check(rows, asked)) is not None:
        raise CpiftError(f"tasks.{name}: {problem}")
    return metric.name


def answer_warnings(name: str, task: Task, rows: Sequence[Row]) -> list[Finding]:
    """Warnings of rows whose own assistant text would be judged wrong: their score can only be 0.

    Args:
        name: the task's name.
        task: its part of the recipe.
        rows: its evaluation rows, which :func:`metric_of` has accepted.
    """
    metric = named(metric_of(name, task, rows))
    if not metric.needs_answer or task.generate is not None:
        return []
    judge = metric.judge(Asked(task.answer_pattern, task.generate, explicit=task.metric is not None))
    wrong = sum(not judge(response(row), row) for row in rows)
    if not wrong:
        return []
    by = f" by the pattern {task.pattern!r}" if task.pattern else ""
    text = (
        f"task {name}: the assistant's own text in {wrong} of {len(rows)} evaluation rows does not give the answer{by}; "
        "a model that has learnt the rows is scored wrong on these"
    )
    return [finding("answer-not-by-pattern", text)]


def _has_answer(name: str, row: Row) -> bool:
    try:
        return bool(references(row))
    except ValueError as error:
        raise CpiftError(f"tasks.{name}: {error}") from error


def sample(rows: Sequence[Row], count: int, seed: int, name: str, draw: int = 1) -> list[Row]:
    """``count`` rows drawn by seed, in their original order; all of them where there are fewer. The second ``draw`` and
    later ones give rows that none before has given; where fewer than ``count`` are left, all may be drawn again."""
    if count >= len(rows):
        return list(rows)
    rng, left, chosen = _rng(seed, name, "sample"), list(range(len(rows))), list[int]()
    for _ in range(draw):
        if len(left) < count:
            left = list(range(len(rows)))
        chosen = rng.sample(left, count)
        left = sorted(set(left) - set(chosen))
    return [rows[i] for i in sorted(chosen)]


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a file that :func:`write_jsonl` wrote. Raises :class:`CpiftError` with file and line."""
    return [check_row(row, where) for where, row in read_file(path, JSON_LINES)]


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One row a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def check_row(row: Any, where: str) -> Row:
    """The row, if it can be trained on. Raises :class:`CpiftError` that says what it lacks."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise CpiftError(f"{where}: holds half a character (a lone surrogate), which no text file can") from error
    if not isinstance(row, dict):
        raise CpiftError(f"{where}: a row is an object with messages, or with prompt and completion")
    if "messages" in row:
        _check_messages(row["messages"], where, last_is_assistant=True)
    elif "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str) != isinstance(completion, str):
            raise CpiftError(f"{where}: prompt and completion must both be text or both be messages")
        if isinstance(prompt, str):
            if not completion.strip():
                raise CpiftError(f"{where}: the completion is empty")
        else:
            _check_messages(prompt, where, last_is_assistant=False)
            _check_messages(completion, where, last_is_assistant=True)
    else:
        raise CpiftError(
            f"{where}: has neither messages nor prompt and completion, but {', '.join(map(str, row)) or 'nothing'}"
        )
    check_row_keys(row, where)
    return row


def _check_messages(messages: Any, where: str, last_is_assistant: bool) -> None:
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and (isinstance(m.get("content"), str) or _calls(m))
        for m in messages
    ):
        raise CpiftError(f"{where}: messages must be a list of objects with role and content, both text")
    if last_is_assistant and not any(
        m["role"] == "assistant" and ((m.get("content") or "").strip() or _calls(m)) for m in messages
    ):
        raise CpiftError(f"{where}: has no assistant turn, so there is nothing to learn")


def _calls(message: Row) -> bool:
    """Is it a call of tools? Then it needs no words."""
    return message.get("content") is None and bool(message.get("tool_calls"))


def _generated(name: str, task: Task, seed: int) -> tuple[list[Row], list[Row]]:
    """Seeds far apart make the two sets (row i of a generator with seed s is row i - 1 of one with s + 1); a question of
    the evaluation set is left out of the training set."""
    assert isinstance(task.train, int)
    assert isinstance(task.eval, int)
    evaluation = _generate(name, task, task.eval, _rng(seed, name, "eval").randrange(2**31), set())
    avoid = {_content(row) for row in evaluation}
    train = _generate(name, task, task.train, _rng(seed, name, "train").randrange(2**31), avoid)
    return train, evaluation


def _generate(name: str, task: Task, count: int, seed: int, avoid: set[str]) -> list[Row]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if task.generate not in DATASETS:
        hint = did_you_mean(str(task.generate), DATASETS)
        raise CpiftError(f"tasks.{name}.generate: {task.generate!r} is no reasoning_gym task{hint}")
    rows: list[Row] = []
    try:
        source = reasoning_gym.create_dataset(
            task.generate, size=4 * count + 64, seed=seed, **(task.config if isinstance(task.config, dict) else {})
        )
        for entry in source:
            messages = [
                {"role": "user", "content": entry["question"]},
                {"role": "assistant", "content": str(entry["answer"])},
            ]
            row = {"messages": messages, "answer": str(entry["answer"]), "entry": _plain(entry)}
            if _content(row) not in avoid:
                rows.append(row)
            if len(rows) == count:
                return rows
    except CpiftError:
        raise
    except Exception as error:  # the generators check their settings by assertions
        raise CpiftError(f"tasks.{name}.config: reasoning_gym refuses it ({error})") from error
    raise CpiftError(f"tasks.{name}: {task.generate} makes too few different rows for {count}; ask for fewer")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _content(row: Row) -> str:
    """What makes two rows the same: all that the model reads, not metadata. Blanks around a text, and how its accents
    are coded, make no difference."""
    kept = {
        key: _read(row[key])
        for key in ("messages", "prompt", "completion", "tools", "chat_template_kwargs")
        if key in row
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _read(value: Any) -> Any:
    if isinstance(value, str):
        return composed(value).strip()
    if isinstance(value, list):
        return [_read(item) for item in value]
    if isinstance(value, dict) and "role" in value:
        skipped = {*MESSAGE_METADATA, "weight", "train"}
        return {key: _read(item) for key, item in value.items() if key not in skipped and item is not None}
    return value


def _rng(seed: int, *purpose: str) -> random.Random:
    """A stream of its own for each purpose, so that adding a task leaves the others as they were."""
    return random.Random("/".join([str(seed), *purpose]))
