"""What the model will see of a recipe's data: for ``cpift data``, and the same numbers for ``cpift plan``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from cpift.data.encoded import EncodedRows
from cpift.data.encoding import IGNORED, encode, notes_of
from cpift.data.lengths import Lengths, cut_warning, encode_measured
from cpift.data.mixture import Mix, pooled_rows
from cpift.data.row_checks import Row
from cpift.data.rows import TaskRows, Used, answer_warnings, load_task, metric_of, sample
from cpift.errors import CpiftError
from cpift.metrics import named
from cpift.recipe.recipe import Recipe
from cpift.recipe.task import Task
from cpift.runs.given import GivenModel
from cpift.train.config import max_length
from cpift.train.models import read_tokenizer
from cpift.typing import Tokenizer


@dataclass(frozen=True)
class Piece:
    """A part of a rendered row: its text, and whether the loss is taken on it."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Example:
    """A rendered row."""

    tokens: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class TaskData:
    """What the model will see of a task."""

    metric: str
    shapes: Mapping[str, int]
    """How many rows were given in each shape."""
    sources: Sequence[Used]
    train: Lengths
    evaluation: Lengths
    warnings: Sequence[str]
    row_share: float = 0.0
    """Share of the rows where all tasks are trained together, by the recipe's ``mix``."""
    token_share: float = 0.0
    """Share of the tokens of these rows."""
    mixed_rows: int = 0
    """Rows that the task gives where all tasks are trained together."""
    examples: Sequence[Example] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "train": self.train.to_dict(), "evaluation": self.evaluation.to_dict()}


@dataclass(frozen=True)
class Measured:
    """A task's data, and its encoded rows."""

    data: TaskData
    train: EncodedRows
    evaluation: EncodedRows


def measure(name: str, task: Task, rows: TaskRows, tokenizer: Tokenizer, max_length: int | None) -> Measured:
    """Encode the rows of a task, and count.

    Args:
        name: the task's name.
        task: its part of the recipe.
        rows: what :func:`cpift.data.rows.load_task` gave.
        tokenizer: the model's.
        max_length: tokens of a row that are used; None: all.

    Raises:
        CpiftError: rows that the metric or the chat template refuses, or none with a trained part.
    """
    metric = metric_of(name, task, rows.evaluation)
    try:
        train, train_lengths = encode_measured(rows.train, tokenizer, max_length)
        # Only a loss is taken over cut rows: answers are compared whole.
        scored = max_length if named(metric).cuts_rows else None
        evaluation, eval_lengths = encode_measured(rows.evaluation, tokenizer, scored)
    except CpiftError as error:
        raise CpiftError(f"tasks.{name}: {error}") from error
    if not train:
        raise CpiftError(f"tasks.{name}: no row has a trained part left; raise training.max_length")
    if not evaluation and not named(metric).brings_rows:
        raise CpiftError(f"tasks.{name}: no evaluation row has a token to score; raise training.max_length")
    cut = [cut_warning(name, train_lengths, max_length), cut_warning(name, eval_lengths, scored, evaluation=True)]
    raised = [*rows.warnings, *answer_warnings(name, task, rows.evaluation), *(warning for warning in cut if warning)]
    notes = [f"task {name}: {note}" for note in notes_of(train)]
    warnings = [*(warning.text for warning in raised), *notes]
    return Measured(
        TaskData(metric, rows.shapes, rows.sources, train_lengths, eval_lengths, warnings), train, evaluation
    )


def mixture(tasks: Mapping[str, TaskData], mix: Mix) -> dict[str, TaskData]:
    """The tasks with their shares of rows and tokens where all of them are trained together.

    Args:
        tasks: by name.
        mix: the recipe's.
    """
    used = {name: task.train.rows - task.train.left_out for name, task in tasks.items()}
    tokens = {name: task.train.tokens for name, task in tasks.items()}
    rows = pooled_rows(used, tokens, mix)
    mixed = {name: rows[name] * tokens[name] / used[name] for name in tasks}
    return {
        name: replace(
            task,
            mixed_rows=rows[name],
            row_share=rows[name] / sum(rows.values()),
            token_share=mixed[name] / sum(mixed.values()),
        )
        for name, task in tasks.items()
    }


def mixture_lines(tasks: Mapping[str, TaskData], mix: Mix) -> list[str]:
    """What each task gives where all tasks are trained together, for people; none for a single task.

    Args:
        tasks: what :func:`mixture` gave.
        mix: the recipe's.
    """
    if len(tasks) < 2:
        return []
    by = mix if isinstance(mix, str) else "weights " + ", ".join(f"{task} {weight:g}" for task, weight in mix.items())
    return [f"where tasks are trained together, by {by}:"] + [
        f"  {name}: {task.row_share:.0%} of the rows ({task.mixed_rows:,}), {task.token_share:.0%} of the tokens"
        for name, task in tasks.items()
    ]


def survey(recipe: Recipe, examples: int = 3) -> dict[str, TaskData]:
    """What the model will see of every task of a recipe.

    Args:
        recipe: a recipe.
        examples: rendered training rows of each task, drawn by seed.

    Raises:
        CpiftError: rows, or a tokenizer, that cannot be used.
    """
    tokenizer, limit = tokenizer_of(recipe), max_length(recipe.training)
    tasks = {}
    for name, task in recipe.tasks.items():
        rows = load_task(name, task, recipe.seed)
        data = measure(name, task, rows, tokenizer, limit).data
        drawn = [render(row, tokenizer, limit) for row in sample(rows.train, examples, recipe.seed, name)]
        tasks[name] = replace(data, examples=drawn)
    return mixture(tasks, recipe.mix)


def render(row: Row, tokenizer: Tokenizer, max_length: int | None) -> Example:
    """A row as the model sees it, decoded from its tokens, with the trained ones apart.

    Args:
        row: a row of a task.
        tokenizer: the model's.
        max_length: tokens of a row that are used; None: all.
    """
    encoded = encode(row, tokenizer, max_length)
    marked = zip(encoded.input_ids, (label != IGNORED for label in encoded.labels), strict=True)
    pieces = [
        Piece(tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False), trained)
        for trained, run in groupby(marked, key=lambda pair: pair[1])
    ]
    return Example(len(encoded.input_ids), tuple(pieces))


def tokenizer_of(recipe: Recipe) -> Tokenizer:
    """The tokenizer of the recipe's model, without its weights: they are neither fetched from the hub nor read.

    Raises:
        CpiftError: there is none that loads.
    """
    given = GivenModel.of(recipe, weights=False)
    if given.path.suffix != ".gguf":
        return read_tokenizer(given.beside("tokenizer_config.json"), recipe.trust_remote_code, recipe.chat)
    tokenizer = _of_gguf(given.path)
    recipe.chat.apply(tokenizer)
    return tokenizer


def _of_gguf(file: Path) -> Tokenizer:
    try:
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # damaged files raise whatever the reader trips over
        raise CpiftError(f"{file}: cannot be read as GGUF ({' '.join(str(error).split())})") from error
