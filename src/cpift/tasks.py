"""Data in: rows of a task from a file, the hub or a generator, checked, split and sampled by seed.

A row is ``{"messages": [...]}`` or ``{"prompt": ..., "completion": ...}``, as TRL takes them, with an optional ``answer``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cpift.data.answers import is_right, references
from cpift.data.row_keys import check_row_keys
from cpift.errors import CpiftError
from cpift.recipe_parts import Task

Row = dict[str, Any]


def load_rows(name: str, task: Task, seed: int) -> tuple[list[Row], list[Row], list[str]]:
    """Training rows, evaluation rows, and warnings.

    Raises:
        CpiftError: a missing or malformed file (file and line), an empty set, a row with no assistant turn.
    """
    if task.generate is not None:
        train, evaluation = _generated(name, task, seed)
    elif isinstance(task.eval, int):
        rows = _rows(name, str(task.train), task.split)
        if len(rows) <= task.eval:
            raise CpiftError(f"tasks.{name}: eval is {task.eval}, but {task.train} has only {len(rows)} rows")
        chosen = set(_rng(seed, name, "split").sample(range(len(rows)), task.eval))
        train = [row for i, row in enumerate(rows) if i not in chosen]
        evaluation = [row for i, row in enumerate(rows) if i in chosen]
    else:
        train = _rows(name, str(task.train), task.split)
        evaluation = _rows(name, str(task.eval), task.eval_split)
    warnings = []
    if task.train_rows is not None:
        if task.train_rows > len(train):
            warnings.append(f"task {name}: train_rows is {task.train_rows}, there are only {len(train)}; all are used")
        train = sample(train, task.train_rows, seed, name)
    known = {_content(row) for row in train}
    shared = sum(_content(row) in known for row in evaluation)
    if shared:
        warnings.append(
            f"task {name}: {shared} of {len(evaluation)} evaluation rows also stand in the training rows; "
            "its score is too good by what was learnt by heart"
        )
    return train, evaluation, warnings


def metric_of(name: str, task: Task, rows: Sequence[Row]) -> str:
    """The task's metric, with the default resolved.

    Args:
        name: the task's name, for messages.
        task: its part of the recipe.
        rows: its evaluation rows.

    Raises:
        CpiftError: the rows do not allow the metric, or have answers only in part; a pattern without answers.
    """
    answered = sum(_has_answer(name, row) for row in rows)
    metric = task.metric or ("exact_match" if answered else "loss")
    if task.metric is None and task.pattern is not None and not answered:
        raise CpiftError(
            f"tasks.{name}: has a pattern, but its evaluation rows have no answer to compare with; add an answer to "
            "each row (columns: {answer: …} names its column), or use metric: loss"
        )
    if metric != "loss" and answered < len(rows):
        raise CpiftError(
            f"tasks.{name}: metric {metric} needs an answer in each evaluation row, and {len(rows) - answered} of "
            f"{len(rows)} have none; or use metric: loss"
        )
    if metric != "loss" and any(_turns(row)[-1]["role"] != "assistant" for row in rows):
        raise CpiftError(f"tasks.{name}: metric {metric} needs the assistant's turn last in each evaluation row")
    if metric == "exact_match" and task.pattern is None:
        if any(_text(row) not in [answer.strip() for answer in references(row)] for row in rows):
            raise CpiftError(
                f"tasks.{name}: the answers are not the whole assistant text; add a pattern that extracts them, "
                "such as pattern: '#### (.+)'"
            )
        if task.metric is None and all("####" in _text(row) for row in rows):
            raise CpiftError(
                f"tasks.{name}: every answer has '####' before its result, as in gsm8k; add pattern: '#### (.+)' to "
                "compare the results, or metric: loss; metric: exact_match compares the whole text"
            )
    return metric


def answer_warnings(name: str, task: Task, rows: Sequence[Row]) -> list[str]:
    """Warnings of rows whose own assistant text would be judged wrong: their score can only be 0.

    Args:
        name: the task's name.
        task: its part of the recipe.
        rows: its evaluation rows, which :func:`metric_of` has accepted.
    """
    if task.pattern is None or metric_of(name, task, rows) == "loss":
        return []
    pattern = re.compile(task.pattern)
    wrong = sum(not is_right(_text(row), row, pattern) for row in rows)
    if not wrong:
        return []
    return [
        f"task {name}: the assistant's own text in {wrong} of {len(rows)} evaluation rows does not give the answer by "
        f"the pattern {task.pattern!r}; a model that has learnt the rows is scored wrong on these"
    ]


def answer_is_text(row: Row) -> bool:
    """Is the answer, and no other one, the whole of the last assistant turn? Then no generation is needed to score it."""
    answer = row.get("answer")
    given = answer if isinstance(answer, list) else [answer]
    return bool(given) and all(_text(row) == str(value).strip() for value in given)


def _has_answer(name: str, row: Row) -> bool:
    try:
        return bool(references(row))
    except ValueError as error:
        raise CpiftError(f"tasks.{name}: {error}") from error


def _text(row: Row) -> str:
    return str(_turns(row)[-1].get("content") or "").strip()


def _turns(row: Row) -> list[dict[str, str]]:
    """The messages of a row, or those of its completion; plain text is the assistant's."""
    turns = row["messages"] if "messages" in row else row["completion"]
    return [{"role": "assistant", "content": turns}] if isinstance(turns, str) else turns


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
    """Rows of a file that :func:`write_jsonl` wrote or a user gave. Raises :class:`CpiftError` with file and line."""
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise CpiftError(f"{path}, line {number}: not JSON ({error})") from error
                rows.append(check_row(row, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise CpiftError(f"{path}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise CpiftError(f"{path}: cannot be read ({error.strerror})") from error
    return rows


def _read_json(path: Path) -> list[Row]:
    """Rows of a file that holds one list of them, or one row a line. Raises :class:`CpiftError` with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.lstrip().startswith("["):
            return read_jsonl(path)
        rows = json.loads(text)
    except UnicodeDecodeError as error:
        raise CpiftError(f"{path}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise CpiftError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise CpiftError(f"{path}: not JSON ({error})") from error
    except OSError as error:
        raise CpiftError(f"{path}: cannot be read ({error.strerror})") from error
    return [check_row(_without_empty(row), f"{path}, row {i}") for i, row in enumerate(rows)]


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One row a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


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
        isinstance(m, dict) and isinstance(m.get("role"), str) and _has_content(m) for m in messages
    ):
        raise CpiftError(f"{where}: messages must be a list of objects with role and content, both text")
    if last_is_assistant and not any(
        m["role"] == "assistant" and ((m.get("content") or "").strip() or m.get("tool_calls")) for m in messages
    ):
        raise CpiftError(f"{where}: has no assistant turn, so there is nothing to learn")


def _has_content(message: dict[str, Any]) -> bool:
    """Text, or nothing where the assistant calls tools."""
    return isinstance(message.get("content"), str) or bool(message.get("tool_calls") and message.get("content") is None)


def _rows(name: str, source: str, split: str) -> list[Row]:
    path = Path(source)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if not os.path.lexists(path):
            raise CpiftError(f"tasks.{name}: {path} is missing; paths count from the recipe's folder")
        if not os.path.isfile(path):  # a pipe or a device would keep us waiting
            raise CpiftError(f"tasks.{name}: {path} is no file")
    if path.suffix == ".jsonl":
        rows = read_jsonl(path)
    elif path.suffix == ".json":
        rows = _read_json(path)
    else:
        rows = _from_datasets(name, source, split)
    if not rows:
        raise CpiftError(f"tasks.{name}: {source} holds no rows")
    return rows


def _from_datasets(name: str, source: str, split: str) -> list[Row]:
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it has to say comes with the exception
    try:
        if source.endswith(".parquet"):
            data = datasets.load_dataset("parquet", data_files=source, split="train")
        else:
            data = datasets.load_dataset(source, split=split)
    except Exception as error:  # the library raises many kinds, some of its dependencies
        raise CpiftError(
            f"tasks.{name}: {source} (split {split}) cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    return [check_row(_without_empty(row), f"{source}, row {i}") for i, row in enumerate(data)]


def _without_empty(row: Any) -> Any:
    return {k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else row


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
        import difflib

        near = difflib.get_close_matches(str(task.generate), DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CpiftError(f"tasks.{name}.generate: {task.generate!r} is no reasoning_gym task{hint}")
    rows: list[Row] = []
    try:
        source = reasoning_gym.create_dataset(task.generate, size=4 * count + 64, seed=seed, **task.config)
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
    """What makes two rows the same: all that the model reads, not metadata."""
    kept = {
        key: row[key] for key in ("messages", "prompt", "completion", "tools", "chat_template_kwargs") if key in row
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _rng(seed: int, *purpose: str) -> random.Random:
    """A stream of its own for each purpose, so that adding a task leaves the others as they were."""
    return random.Random("/".join([str(seed), *purpose]))
