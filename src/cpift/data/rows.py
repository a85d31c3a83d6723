"""Data in: rows of a task from a file, the hub or a generator, checked, split and sampled by seed.

A row is ``{"messages": [...]}`` or ``{"prompt": ..., "completion": ...}``, as TRL takes them, with an optional ``answer``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cpift.data.draws import exactly, indices, rng, sampled, weighted
from cpift.data.generated import generate_rows
from cpift.data.row_checks import Row
from cpift.data.sources import SourceFacts, source_rows
from cpift.data.store import RowWriter, StoredRows
from cpift.data.twins import shared_rows
from cpift.errors import CpiftError
from cpift.files.findings import Finding, finding
from cpift.metrics import WITH_ANSWERS, WITHOUT_ANSWERS, named
from cpift.metrics.answers import references, response, turns
from cpift.recipe.task import Source, Task


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

    train: Sequence[Row]
    evaluation: Sequence[Row]
    warnings: list[Finding]
    shapes: dict[str, int]
    """How many rows were given in each shape; generated ones have none."""
    sources: list[Used]


def load_rows(name: str, task: Task, seed: int) -> tuple[Sequence[Row], Sequence[Row], list[Finding]]:
    """Training rows, evaluation rows, and warnings: :func:`load_task`, without the facts about them."""
    loaded = load_task(name, task, seed)
    return loaded.train, loaded.evaluation, loaded.warnings


def load_evaluation(name: str, task: Task, seed: int) -> Sequence[Row]:
    """The evaluation rows of a task alone; its training rows are not read.

    Args:
        name: the task's name.
        task: its part of the recipe; ``eval`` names rows.
        seed: of what is drawn.

    Raises:
        CpiftError: as :func:`load_task`.
    """
    if task.eval is None:
        return []
    if task.generate is not None or isinstance(task.eval, int):
        return load_task(name, task, seed).evaluation
    return _evaluation_rows(name, task, seed, Counter(), [])


def load_task(name: str, task: Task, seed: int) -> TaskRows:
    """The rows of a task, and what is known of where they come from.

    Rows of sets lie on disk. Memory: some 20 bytes for each row of a set, 40 more while rows are drawn.

    Args:
        name: the task's name.
        task: its part of the recipe.
        seed: of what is drawn.

    Raises:
        CpiftError: a missing or malformed file (file and line), an empty set, a row with no assistant turn.
    """
    if task.generate is not None:
        loaded = TaskRows(*generate_rows(name, task, seed), [], {}, [])
    else:
        loaded = _from_sets(name, task, seed)
    if task.train_rows is not None:
        count = len(loaded.train)
        if task.train_rows > count:
            text = f"task {name}: train_rows is {task.train_rows}, there are only {count}; all are used"
            loaded.warnings.append(finding("few-rows", text))
        loaded = replace(loaded, train=sample(loaded.train, task.train_rows, seed, name))
    shared = shared_rows(loaded.train, loaded.evaluation)
    if shared:
        text = f"task {name}: {shared} of {len(loaded.evaluation)} evaluation rows also stand in the training rows; "
        loaded.warnings.append(finding("evaluation-in-training", text + "its score is too good by what was memorised"))
    return loaded


def _from_sets(name: str, task: Task, seed: int) -> TaskRows:
    warnings: list[Finding] = []
    shapes: Counter[str] = Counter()
    stored, parts = _stored(name, task, "train", shapes, warnings)
    held_out: set[int] = set()
    evaluation: Sequence[Row]
    if isinstance(task.eval, int):
        if len(stored) <= task.eval:
            paths = ", ".join(part.source.path for part in parts)
            raise CpiftError(f"tasks.{name}: eval is {task.eval}, but {paths} has only {len(stored)} rows")
        held_out = set(rng(seed, name, "split").sample(range(len(stored)), task.eval))
        evaluation = stored.take(indices(sorted(held_out)))
    elif task.eval is None:  # the metric has rows of its own
        evaluation = []
    else:
        evaluation = _evaluation_rows(name, task, seed, shapes, warnings)
    train, used = indices(), []
    for i, part in enumerate(parts):
        left = indices(row for row in part.rows if row not in held_out) if held_out else indices(part.rows)
        counted = left  # held-out rows are taken away before any row is repeated
        if part.num_samples is not None and left:
            counted = exactly(counted, part.num_samples, rng(seed, name, f"samples {i}"))
        if part.source.weight != 1:
            counted = weighted(counted, part.source.weight, rng(seed, name, f"weight {i}"))
        train += counted
        used.append(Used(part.source.path, len(left), len(counted)))
    if not train:
        raise CpiftError(f"tasks.{name}: the weights leave no training row")
    return TaskRows(stored.take(train), evaluation, warnings, dict(shapes), used)


def _evaluation_rows(name: str, task: Task, seed: int, shapes: Counter[str], warnings: list[Finding]) -> Sequence[Row]:
    """Rows of the sets that ``eval`` names; shapes and warnings are added to."""
    kept, sets = _stored(name, task, "eval", shapes, warnings)
    chosen = indices()
    for i, part in enumerate(sets):
        own, wanted = indices(part.rows), part.num_samples
        few = wanted is not None and wanted < len(own)
        chosen += exactly(own, int(wanted or 0), rng(seed, name, f"eval samples {i}")) if few else own
    return kept.take(chosen)


@dataclass(frozen=True)
class _Part:
    """The rows of one source: their numbers among those of all sources, and how many of them it asks for."""

    source: Source
    rows: range
    num_samples: int | None


def _stored(
    name: str, task: Task, part: Literal["train", "eval"], shapes: Counter[str], warnings: list[Finding]
) -> tuple[StoredRows, list[_Part]]:
    """The checked rows of all sources of a part, one after the other; shapes and warnings are added to."""
    parts = []
    with RowWriter() as writer:
        for source in task.sources(part):
            first, facts = len(writer), SourceFacts(source.path)
            try:
                for where, row in source_rows(source, facts):
                    writer.add(row, where)
            except CpiftError as error:
                raise CpiftError(f"tasks.{name}: {error}") from error
            shapes.update(facts.shapes)
            if facts.empty:
                text = f"{facts.empty} rows of {_shown(source.path)} have an empty response and were left out"
                warnings.append(finding("empty-responses", f"task {name}: {text}"))
            parts.append(_Part(source, range(first, len(writer)), facts.num_samples))
        return writer.rows(), parts


def _shown(path: str) -> str:
    """A hub id as it is, of a local path the file's name only."""
    return Path(path).name if path.startswith(("/", "~", ".")) or os.path.exists(path.partition("#")[0]) else path


def sample(rows: Sequence[Row], count: int, seed: int, name: str, draw: int = 1) -> Sequence[Row]:
    """``count`` rows drawn by seed, in their original order; all of them where there are fewer.

    Args:
        rows: rows of a task.
        count: rows to draw.
        seed: of the recipe.
        name: of the task.
        draw: which sample, from 1; as :func:`cpift.data.draws.sampled`.
    """
    if count >= len(rows):
        return rows
    return [rows[i] for i in sampled(count, len(rows), seed, name, draw)]


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
    if (problem := metric.check(rows, task.asked)) is not None:
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
    judge = metric.judge(task.asked)
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
