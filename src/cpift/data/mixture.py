"""Shares of tasks that are trained together: by their rows, by tokens, alike, or by weights of the recipe."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

Mix = str | Mapping[str, float]

MIXES = {
    "rows": "each task as it is: its share is that of its rows",
    "tokens": "each task gives as many tokens",
    "equal": "each task gives as many rows",
}


def pooled_rows(rows: Mapping[str, int], tokens: Mapping[str, float], mix: Mix) -> dict[str, int]:
    """How many rows each task gives to a stage that trains on several. The sum is that of the tasks' own rows.

    The number of rows, and with it that of optimizer steps, does not depend on the mix.

    Args:
        rows: number of rows by task.
        tokens: number of tokens in these rows, by task.
        mix: a name of :data:`MIXES`, or a weight for each task: its rows are in that proportion.

    Returns:
        Number of rows by task, at least one each. A task that gives more than it has repeats some.
    """
    if mix == "rows" or len(rows) < 2:
        return dict(rows)
    if isinstance(mix, str):
        weights = {task: 1.0 if mix == "equal" else count / tokens[task] for task, count in rows.items()}
    else:
        weights = {task: mix[task] for task in rows}
    total, whole = sum(rows.values()), sum(weights.values())
    exact = {task: total * weight / whole for task, weight in weights.items()}
    given = {task: max(1, int(count)) for task, count in exact.items()}
    while (left := total - sum(given.values())) != 0:  # the largest remainders are rounded up, and none falls below 1
        able = [task for task in rows if left > 0 or given[task] > 1]
        given[max(able, key=lambda task: math.copysign(1, left) * (exact[task] - given[task]))] += 1 if left > 0 else -1
    return given


def drawn(count: int, available: int, seed: int, task: str) -> list[int]:
    """Indices of ``count`` rows of a task in ascending order: all of them as often as they fit, the rest by seed.

    Args:
        count: number of rows to give.
        available: number of rows that the task has.
        seed: of the recipe.
        task: its name; every task has random numbers of its own.
    """
    whole, rest = divmod(count, available)
    extra = random.Random(f"{seed}/{task}/mix").sample(range(available), rest)
    return sorted([*list(range(available)) * whole, *extra])


def check_mix(mix: Mix, tasks: Sequence[str]) -> None:
    """Raise ValueError, with what to write, where a mix is no name of :data:`MIXES` and does not weigh each task."""
    if isinstance(mix, str):
        if mix not in MIXES:
            raise ValueError(f"is none of {', '.join(MIXES)}, nor a weight for each task")
        return
    if missing := [task for task in tasks if task not in mix]:
        raise ValueError(f"has no weight for {missing[0]}; give one for each task ({', '.join(tasks)})")
    if unknown := [task for task in mix if task not in tasks]:
        raise ValueError(f"{unknown[0]} is no task; tasks are {', '.join(tasks)}")
    for task, weight in mix.items():
        if not 0 < weight <= 1e6:
            raise ValueError(f"the weight of {task} is {weight}; it must be above 0, and at most a million")
