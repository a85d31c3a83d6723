"""What ``comparison.json`` holds: methods by budgets and seeds, and the statistics of them."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from cpift.metrics.score import GuardRecord, Scores


class Difference(TypedDict):
    """A difference of scores with its 95 % interval over seeds; more is better.

    Attributes:
        difference: the mean.
        low: lower end of the interval.
        high: upper end.
        p: two-sided p-value of the difference being zero; not in files made before it was.
    """

    difference: float
    low: float
    high: float
    p: float


class GuardDifference(Difference):
    """Of a set of the guard."""

    metric: str


class Spread(TypedDict):
    """Mean and standard deviation over seeds; None where there are too few."""

    mean: float | None
    sd: float | None


class TaskEntry(TypedDict):
    """A task: its metric, and its number of evaluation rows."""

    metric: str
    rows: int


class ArrivalEntry(TypedDict):
    """The scores after a task has arrived, and the outcome of each row."""

    task: str
    tokens: int
    scores: dict[str, float]
    items: NotRequired[dict[str, list[float]]]


class Result(TypedDict):
    """One method with one seed under one budget.

    Attributes:
        scores: at the end, by task.
        tokens: that it was trained on.
        seconds: that its stages took.
        key: hash of what the result was made from.
        arrivals: under the budget ``incremental``.
        guard: of the base and the last model; absent of single-task models, and where the recipe has no guard.
    """

    scores: Scores
    tokens: float
    seconds: float
    key: NotRequired[str]
    arrivals: NotRequired[list[ArrivalEntry]]
    guard: NotRequired[GuardRecord]


Results = dict[str, Result]
"""By seed."""


class MethodSummary(TypedDict):
    """A method over its seeds.

    Attributes:
        seeds: how many.
        tokens: mean of the training tokens.
        seconds: mean of the time.
        tasks: scores.
        mean: of the tasks' scores.
        shares: of the specialist's score, by task.
        worst_task: the task with the least share.
        seesaw: tasks on which it is behind the specialist beyond noise.
        guard: by set, the last model minus the base.
        drift: KL divergence from the base, nats a token.
    """

    seeds: int
    tokens: float
    seconds: float
    tasks: dict[str, Spread]
    mean: Spread
    shares: NotRequired[dict[str, float | None]]
    worst_task: NotRequired[str | None]
    seesaw: NotRequired[int]
    guard: NotRequired[dict[str, GuardDifference]]
    drift: NotRequired[Spread]


class Compared(TypedDict):
    """One set of results minus another, on the seeds that both have."""

    seeds: int
    tasks: dict[str, Difference]
    mean: NotRequired[Difference]
    wins: NotRequired[int]
    losses: NotRequired[int]
    ties: NotRequired[int]


class MethodDifference(Compared):
    """A method minus the reference.

    Attributes:
        method: the former.
        against: the reference.
        p_holm: p-value of the mean, adjusted for the number of methods.
    """

    method: str
    against: str
    p_holm: NotRequired[float]


Forgetting = dict[str, Difference]
"""What an arrival changes: ``old``, on the tasks that were there, and ``new``, on the one that arrives."""


class Trials(TypedDict):
    """How a method's learning rate was tuned.

    Attributes:
        scores: mean score on the tuning rows, by what the recipe's learning rates were multiplied by.
        factor: the one that was chosen.
        at_the_edge: no further one was tried on one of its sides.
    """

    scores: dict[str, float]
    factor: float
    at_the_edge: bool


class RecipeValues(TypedDict):
    """A recipe's values; only the keys that are read by name are listed."""

    model: str
    tasks: dict[str, dict[str, object]]


class ComparisonRecord(TypedDict):
    """The whole file.

    Attributes:
        format: name of the schema.
        state: ``running`` or ``done``.
        recipe: its values.
        versions: of Python and the libraries.
        tasks: by name.
        seeds: in order.
        reference: the method that others are compared with.
        budgets: budget to method to seed to result.
        summary: budget to method.
        differences: budget to the methods that are not the reference.
        forgetting: by method, under the budget ``incremental``.
        tuning: by method, where learning rates were tuned.
    """

    format: str
    state: str
    recipe: RecipeValues
    versions: NotRequired[dict[str, str]]
    tasks: dict[str, TaskEntry]
    seeds: list[int]
    reference: str
    budgets: dict[str, dict[str, Results]]
    summary: dict[str, dict[str, MethodSummary]]
    differences: dict[str, list[MethodDifference]]
    forgetting: NotRequired[dict[str, Forgetting]]
    tuning: NotRequired[dict[str, Trials]]
