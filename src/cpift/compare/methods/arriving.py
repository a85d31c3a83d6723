"""What the methods share where tasks arrive one after the other: of an old task only a small sample is still at hand.

At each arrival every method may see the same number of tokens: those of a probe and of a refine stage. A method that
retrains on everything is the upper bound, and what it costs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpift.compare.methods.method import Arrival
from cpift.errors import CpiftError
from cpift.train.averaging import Averaging, averaging

if TYPE_CHECKING:
    from cpift.compare.workbench import Work
    from cpift.runs.stage import ModelRef


def allowance(work: Work, task: str) -> float:
    """Tokens of an arrival: a probe of the task, and half as many again to settle it in."""
    return 1.5 * work.paper_tokens([task])


def left_of(work: Work, task: str, tokens: float) -> float:
    """What of a number of tokens the choice of the task's core region leaves to its training.

    Raises:
        CpiftError: no tokens are left.
    """
    left = tokens - work.region_tokens([task])
    if left <= 0:
        raise CpiftError(
            f"region.by: {work.run.recipe.region.by} on the rows of {task} takes all tokens that its arrival has; "
            "lower region.rows"
        )
    return left


def sample(work: Work, earlier: list[str]) -> dict[str, int]:
    """How many rows of each earlier task are still at hand."""
    return dict.fromkeys(earlier, work.run.recipe.refine.examples_per_task)


def average_of(work: Work, at_end: bool = True) -> Averaging | None:
    """Averages with the model before, where the recipe's ``fuse.every`` asks for them."""
    average = averaging(work.run.recipe.fuse)
    return None if average is None else replace(average, at_end=at_end)


def arrival(work: Work, task: str, model: str, place: ModelRef, tokens: int) -> Arrival:
    """Scored on all tasks, those to come as well: what a task gains when it arrives counts from there."""
    return Arrival(task, tokens, work.score(model, place))
