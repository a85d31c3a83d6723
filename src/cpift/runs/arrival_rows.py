"""Which rows an arrival trains on: those of the new task, and kept rows of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cpift.recipe.recipe import Recipe
from cpift.train.config import batch_rows


def rows_of_share(new: int, share: float) -> int:
    """Kept rows beside ``new`` ones, where they are ``share`` of all; one at least."""
    return max(1, round(new * share / (1 - share)))


def replayed_rows(recipe: Recipe, rows: Mapping[str, int], number: int) -> dict[str, int]:
    """How many kept rows of each task are mixed into an arrival, before they are repeated.

    Args:
        recipe: the recipe, with arrivals.
        rows: training rows of each task.
        number: of the arrival, from 1.
    """
    part = recipe.protect
    if not part.replay:
        return {}
    return spread(
        rows_of_share(rows[recipe.additions.order[number - 1]], part.replay), rows_at_hand(recipe, rows, number)
    )


def rows_at_hand(recipe: Recipe, rows: Mapping[str, int], number: int) -> dict[str, int]:
    """How many rows there are of each earlier task: of the kept ones all, of earlier arrivals ``examples_per_task``.

    Args:
        recipe: the recipe, with arrivals.
        rows: training rows of each task.
        number: of the arrival, from 1.
    """
    arrivals = recipe.additions
    at_hand = {name: rows[name] for name in recipe.tasks if name not in arrivals.order}
    return at_hand | {name: min(rows[name], arrivals.examples_per_task) for name in arrivals.order[: number - 1]}


def spread(wanted: int, at_hand: Mapping[str, int]) -> dict[str, int]:
    """A number of rows over the tasks, alike; what few rows leave goes to the others.

    Args:
        wanted: number of rows.
        at_hand: rows that each task has.
    """
    left, drawn = wanted, dict[str, int]()
    for place, (name, count) in enumerate(sorted(at_hand.items(), key=lambda item: item[1])):
        drawn[name] = min(count, -(-left // (len(at_hand) - place)))
        left -= drawn[name]
    return {name: drawn[name] for name in at_hand if drawn[name]}


def mixed_rows(recipe: Recipe, rows: Mapping[str, int], number: int) -> tuple[int, int]:
    """New rows of an arrival, and kept rows mixed in, repeated to their share of all."""
    arrivals, share = recipe.additions, recipe.protect.replay
    new = rows[arrivals.order[number - 1]]
    return new, rows_of_share(new, share) if replayed_rows(recipe, rows, number) else 0


def mixed_tokens(recipe: Recipe, rows: Mapping[str, int], lengths: Mapping[str, float], number: int) -> float:
    """Tokens of one pass over the rows of an arrival, kept rows included.

    Args:
        recipe: the recipe, with arrivals.
        rows: training rows of each task.
        lengths: mean tokens of a row of each task.
        number: of the arrival, from 1.
    """
    new, kept = mixed_rows(recipe, rows, number)
    tokens = new * lengths[recipe.additions.order[number - 1]]
    if kept:
        replay = replayed_rows(recipe, rows, number)
        tokens += kept * sum(lengths[task] * count for task, count in replay.items()) / sum(replay.values())
    return tokens


def arrival_steps(recipe: Recipe, rows: Mapping[str, int], number: int) -> int:
    """Optimizer steps of an arrival: ``epochs`` passes over its new rows with the kept rows mixed in."""
    seen = recipe.additions.epochs * sum(mixed_rows(recipe, rows, number))
    return max(1, math.ceil(seen / batch_rows(recipe.training_of("arrivals")) - 1e-9))
