"""What a metric is: its name and unit, what it needs of a row, and how an answer is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from cpift.metrics.answers import AnswerPattern, Row
from cpift.metrics.settings import MetricSettings

Judge = Callable[[str, Row], float]
"""Score from 0 to 1 of a generated text, given its row."""

Chosen = TypeVar("Chosen", bound=MetricSettings)


class Scoring(Enum):
    """How the outcome of a row is obtained from a model."""

    LOSS = "loss"
    """Mean negative log-likelihood of the assistant's tokens; rows are cut at ``training.max_length``."""
    EXACT = "exact"
    """One teacher-forced forward where that decides; otherwise the answer is generated and judged."""
    GENERATED = "generated"
    """The answer is generated and judged."""
    OPTIONS = "options"
    """The likelihood of each option of the row."""
    LM_EVAL = "lm_eval"
    """By lm-eval, on its own rows."""


@dataclass(frozen=True)
class Unit:
    """How the values of a metric are written.

    Attributes:
        name: for tables, such as ``per cent``.
        short: beside a number, such as ``%``.
        difference: beside a difference of two scores, such as ``points``.
        scale: what a score is multiplied by.
        digits: after the point.
        highest: the largest possible score; None: unbounded.
    """

    name: str
    short: str
    difference: str
    scale: float
    digits: int
    highest: float | None

    @property
    def bounded(self) -> bool:
        """Is a score a share of the best possible one? Such scores may be averaged over tasks."""
        return self.highest is not None

    def number(self, value: float) -> str:
        """The value alone, such as 33.3."""
        return f"{self.scale * value:.{self.digits}f}"


PER_CENT = Unit("per cent", "%", "points", 100, 1, 1.0)
OF_TEN = Unit("of 10", "of 10", "of 10", 10, 2, 1.0)
NATS = Unit("nats", "nats", "nats", 1, 3, None)


@dataclass(frozen=True)
class Asked:
    """What a task asks of its metric.

    Attributes:
        pattern: where the answer is within a text; None: the text is the answer.
        generator: name of the reasoning_gym task that made the rows.
        explicit: whether the recipe names the metric, rather than leaving it to the rows.
        settings: of the metric, by name, as the recipe has them.
    """

    pattern: AnswerPattern | None = None
    generator: str | None = None
    explicit: bool = True
    settings: Mapping[str, object] = field(default_factory=dict)

    def chosen(self, kind: type[Chosen]) -> Chosen:
        """The settings as a record, defaults filled in. Raises ``ValidationError`` for those that it does not have."""
        return kind.model_validate(self.settings)


@dataclass(frozen=True)
class Judged:
    """The outcomes of many answers.

    Attributes:
        items: from 0 to 1; None where there is none, as where a judge's reply could not be read.
        notes: counts to report, such as tokens that were paid for.
    """

    items: Sequence[float | None]
    notes: Mapping[str, int] = field(default_factory=dict)


def _accepts_all(rows: Sequence[Row], asked: Asked) -> str | None:
    return None


def _no_judge(asked: Asked) -> Judge:
    raise NotImplementedError("this metric judges no generated text")


def _no_identity(asked: Asked) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: what ``metric:`` in a recipe calls it.
        label: what reports and model cards call it.
        summary: one line for command help and docs.
        rows: what it needs of an evaluation row, for people.
        scoring: how an outcome is obtained.
        axis: label of a chart's axis.
        unit: how its values are written.
        higher_is_better: False where a lower score is better.
        by_tokens: the score is the mean over tokens, not over rows.
        needs_answer: each row needs an ``answer``.
        card_type: the metric's type in the metadata of a model card.
        check: what is wrong with the rows, or None. Packages that are missing are reported here, before any training.
        judge: makes the judge of a task's answers.
        judge_all: judges all answers together, in place of ``judge``; asked where judging costs time or money.
        identity: what decides about the score beside name and settings, for the key of a stage.
        settings: what ``metric_settings`` of a task may hold.
    """

    name: str
    label: str
    summary: str
    rows: str
    scoring: Scoring
    axis: str
    unit: Unit = PER_CENT
    higher_is_better: bool = True
    by_tokens: bool = False
    needs_answer: bool = False
    card_type: str = "score"
    check: Callable[[Sequence[Row], Asked], str | None] = _accepts_all
    judge: Callable[[Asked], Judge] = _no_judge
    judge_all: Callable[[Asked, Sequence[str], Sequence[Row]], Judged] | None = None
    identity: Callable[[Asked], Mapping[str, str]] = _no_identity
    settings: type[MetricSettings] = MetricSettings

    @property
    def brings_rows(self) -> bool:
        """Has it evaluation rows of its own? A task then has training rows alone."""
        return self.scoring is Scoring.LM_EVAL

    @property
    def cuts_rows(self) -> bool:
        """Are evaluation rows cut at ``training.max_length``? Answers are compared whole."""
        return self.scoring is Scoring.LOSS

    @property
    def reads_whole_rows(self) -> bool:
        """Does the model read each evaluation row with its whole answer?"""
        return self.scoring in (Scoring.EXACT, Scoring.OPTIONS)

    def judged(self, asked: Asked, texts: Sequence[str], rows: Sequence[Row]) -> Judged:
        """The outcomes of generated answers.

        Args:
            asked: what the task asks.
            texts: what a model generated, without its reasoning.
            rows: the row of each.
        """
        if self.judge_all is not None:
            return self.judge_all(asked, texts, rows)
        judge = self.judge(asked)
        return Judged([judge(text, row) for text, row in zip(texts, rows, strict=True)])

    def gain(self, score: float, other: float) -> float:
        """How much better a score is than another: positive is better."""
        return score - other if self.higher_is_better else other - score

    def share(self, score: float, reference: float) -> float | None:
        """The score as a share of a reference, 1.0 = as good; None where that would divide by zero."""
        part, whole = (score, reference) if self.higher_is_better else (reference, score)
        return part / whole if whole else None

    def value(self, score: float) -> str:
        """33.3 %, or 1.234 nats."""
        return f"{self.unit.number(score)} {self.unit.short}"
