"""Which rows of earlier groups a refine stage sees again, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpift.recipe.recipe import Recipe
from cpift.runs.arrival_rows import rows_of_share, spread


def refined_rows(recipe: Recipe, rows: Mapping[str, int], group: Sequence[str]) -> int:
    """Rows of the stage's own tasks."""
    return sum(min(recipe.refine.examples_per_task, rows[task]) for task in group)


def replayed(recipe: Recipe, rows: Mapping[str, int], groups: Sequence[Sequence[str]], number: int) -> dict[str, int]:
    """How many rows of each task of earlier groups a stage draws, before they are repeated to their share.

    Args:
        recipe: the recipe.
        rows: training rows of each task.
        groups: tasks by group, in the order of the stages.
        number: of the stage, from 1.
    """
    part = recipe.refine
    earlier = [task for group in groups[: number - 1] for task in group]
    if not part.replay or not earlier:
        return {}
    at_hand = {task: min(part.examples_per_task, rows[task]) for task in earlier}
    return spread(rows_of_share(refined_rows(recipe, rows, groups[number - 1]), part.replay), at_hand)


def replayed_pass(
    recipe: Recipe, rows: Mapping[str, int], lengths: Mapping[str, float], groups: Sequence[Sequence[str]], number: int
) -> tuple[int, float]:
    """Rows of earlier groups in one pass of a stage, repeated to their share, and their tokens.

    Args:
        recipe: the recipe.
        rows: training rows of each task.
        lengths: mean tokens of a row of each task.
        groups: tasks by group, in the order of the stages.
        number: of the stage, from 1.
    """
    drawn = replayed(recipe, rows, groups, number)
    if not drawn:
        return 0, 0.0
    count = rows_of_share(refined_rows(recipe, rows, groups[number - 1]), recipe.refine.replay)
    return count, count * sum(lengths[task] * drawn[task] for task in drawn) / sum(drawn.values())
