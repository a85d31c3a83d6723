"""What is drawn by seed: which rows of a task are used."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Sequence


def rng(seed: int, *purpose: str) -> random.Random:
    """A stream of its own for each purpose, so that adding a task leaves the others as they were."""
    return random.Random("/".join([str(seed), *purpose]))


def indices(numbers: Iterable[int] = ()) -> array[int]:
    """Numbers of rows, 8 bytes each."""
    return array("q", numbers)


def sampled(count: int, available: int, seed: int, name: str, draw: int = 1) -> Sequence[int]:
    """Numbers of ``count`` rows drawn by seed, ascending; all of them where there are no more.

    The second ``draw`` and later ones give rows that none before has given; where fewer than ``count`` are left, all
    may be drawn again.

    Args:
        count: rows to draw.
        available: rows that there are.
        seed: of the recipe.
        name: of the task.
        draw: which sample, from 1.
    """
    if count >= available:
        return range(available)
    random_numbers = rng(seed, name, "sample")
    left: Sequence[int] = range(available)
    chosen: list[int] = []
    for number in range(draw):
        if len(left) < count:
            left = range(available)
        chosen = random_numbers.sample(left, count)
        if number + 1 < draw:
            left = sorted(set(left) - set(chosen))
    return sorted(chosen)


def weighted(rows: array[int], weight: float, random_numbers: random.Random) -> array[int]:
    """Rows as often as the weight: 2 is each of them twice, 0.5 a half of them, drawn; in their order.

    Args:
        rows: numbers of the rows of one source.
        weight: above 0.
        random_numbers: which rows a fraction takes.
    """
    whole = int(weight)
    some = random_numbers.sample(range(len(rows)), round((weight - whole) * len(rows)))
    return rows * whole + indices([rows[i] for i in sorted(some)])


def exactly(rows: array[int], count: int, random_numbers: random.Random) -> array[int]:
    """``count`` rows in their order, as ``num_samples`` of LLaMA-Factory: none twice where there are enough.

    Otherwise all of them, and further ones drawn with replacement.

    Args:
        rows: numbers of the rows of one source.
        count: rows to draw.
        random_numbers: which rows are drawn.
    """
    if count <= len(rows):
        return indices([rows[i] for i in sorted(random_numbers.sample(range(len(rows)), count))])
    more = random_numbers.choices(range(len(rows)), k=count - len(rows))
    return indices(sorted([*rows, *(rows[i] for i in more)]))
