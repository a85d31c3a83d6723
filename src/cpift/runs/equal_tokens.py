"""Equal tokens for other ways to make an addition: how many passes over the new rows come nearest."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cpift.recipe.recipe import Recipe
from cpift.runs.arrival_rows import arrival_steps, mixed_rows, mixed_tokens
from cpift.train.config import batch_rows

_NEAR = 0.25  # of the passes: a training of few steps is that much too long or too short for whole steps
_GRID = 50  # numbers of passes tried on each side


def trained_tokens(recipe: Recipe, rows: Mapping[str, int], lengths: Mapping[str, float]) -> float:
    """Tokens that the arrivals of a recipe are trained on, by whole steps.

    Args:
        recipe: the recipe, with arrivals.
        rows: training rows of each task.
        lengths: mean tokens of a row of each task.
    """
    batch, total = batch_rows(recipe.training_of("arrivals")), 0.0
    for number in range(1, len(recipe.additions.order) + 1):
        mixed = sum(mixed_rows(recipe, rows, number))
        passes, rest = divmod(arrival_steps(recipe, rows, number), math.ceil(mixed / batch))
        seen = passes * mixed + min(rest * batch, mixed)  # the last step of a pass takes what is left
        total += seen * mixed_tokens(recipe, rows, lengths, number) / mixed
    return total * len(trainings(recipe))


def trainings(recipe: Recipe) -> tuple[str, ...]:
    """The parts of an arrival that train."""
    return ("train", "inside") if recipe.additions.train == "inside" else ("train",)


def equal_epochs(recipe: Recipe, other: Recipe, rows: Mapping[str, int], lengths: Mapping[str, float]) -> float:
    """Passes over the new rows with which another way is trained on as many tokens as a recipe, as near as steps allow.

    Args:
        recipe: the recipe, with arrivals.
        other: the other way to make its additions.
        rows: training rows of each task.
        lengths: mean tokens of a row of each task.
    """
    wanted = trained_tokens(recipe, rows, lengths)
    start = other.additions.epochs * wanted / trained_tokens(other, rows, lengths)

    def missed(epochs: float) -> float:
        arrivals = other.additions.model_copy(update={"epochs": epochs})
        return abs(trained_tokens(other.model_copy(update={"arrivals": arrivals}), rows, lengths) - wanted)

    near = sorted(range(-_GRID, _GRID + 1), key=abs)  # of several that are as good, the nearest
    return min((start * (1 + _NEAR * step / _GRID) for step in near), key=missed)
