"""A task to score, and its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cpift.data.row_checks import Row
from cpift.files.findings import Finding, finding
from cpift.metrics import named
from cpift.metrics.answers import AnswerPattern
from cpift.metrics.metric import Asked, Metric
from cpift.metrics.score import ScoreEntry
from cpift.recipe.task import Task


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
        settings: of the metric, by name.
        folder: of task files for lm-eval.
    """

    rows: Sequence[Row]
    metric: str
    pattern: str | Sequence[str] | None = None
    max_new_tokens: int = 256
    generator: str | None = None
    match: str = "last"
    settings: Mapping[str, object] = field(default_factory=dict)
    folder: str | None = None

    @classmethod
    def of(cls, task: Task, rows: Sequence[Row], metric: str, folder: str | None = None) -> EvalTask:
        """Of a recipe's task, its rows and their metric; ``folder`` as the attribute."""
        return cls(
            rows, metric, task.pattern, task.max_new_tokens, task.generate, task.match, task.metric_settings, folder
        )

    @property
    def kind(self) -> Metric:
        """The metric itself."""
        return named(self.metric)

    @property
    def answer_pattern(self) -> AnswerPattern | None:
        """Where an answer is within a text; None: the text is the answer."""
        return AnswerPattern.of(self.pattern, self.match)

    @property
    def asked(self) -> Asked:
        """What the metric is asked for."""
        return Asked(self.answer_pattern, self.generator, settings=self.settings)


def scoring_identity(task: Task, metric: str) -> dict[str, str]:
    """What decides about a task's scores beside the metric's name, pattern and longest answer, for the key of a stage."""
    match = {} if task.match == "last" else {"match": task.match}
    return {**named(metric).identity(task.asked), **task.chosen_settings(named(metric)).identity(), **match}


@dataclass(frozen=True)
class Score:
    """A task's score.

    Attributes:
        metric: the metric's name.
        score: mean of the items; of a metric by tokens, the mean over all tokens.
        items: one outcome a row, in the metric's unit; of the loss, the mean over the row's tokens.
        tokens: of each row: those scored, or generated.
        left_out: rows without a token to score within ``max_length``; they are not among the items.
        precision: ``fp32``, or ``bf16 autocast`` over fp32 weights.
        rows: number of each item's row from 0, where some are left out; None: of all rows.
        notes: counts of the metric's, such as tokens that a judge was paid for.
        reused: rows whose answer or outcome was known from earlier scoring.
    """

    metric: str
    score: float
    items: list[float]
    tokens: list[int]
    left_out: int = 0
    precision: str = ""
    rows: list[int] | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    reused: int = 0

    def to_dict(self) -> ScoreEntry:
        """For JSON."""
        entry = ScoreEntry(
            metric=self.metric,
            score=self.score,
            items=self.items,
            tokens=self.tokens,
            left_out=self.left_out,
            precision=self.precision,
        )
        if self.rows is not None:
            entry["rows"] = self.rows
        if self.notes:
            entry["notes"] = dict(self.notes)
        return entry


def notes_message(name: str, score: Score) -> str | None:
    """What a metric counted, on one line: ``task alpaca, judge: requests 20, cached 4, …``; None where it counts nothing."""
    counts = ", ".join(f"{what.replace('_', ' ')} {count:,}" for what, count in score.notes.items())
    return f"task {name}, {score.metric}: {counts}" if counts else None


def left_out_warning(name: str, score: Score, max_length: int | None) -> Finding:
    """The warning of rows that have nothing to score, or no outcome.

    Args:
        name: the task's name.
        score: of the task.
        max_length: tokens of a row that were used.
    """
    if not named(score.metric).cuts_rows:
        text = f"task {name}: {score.left_out} evaluation rows have no outcome by {score.metric}"
        return finding("no-outcome", f"{text}, as its reply could not be read, and are left out")
    text = (
        f"task {name}: {score.left_out} evaluation rows have nothing to score within training.max_length {max_length} "
    )
    return finding("nothing-to-score", f"{text}and are left out")
