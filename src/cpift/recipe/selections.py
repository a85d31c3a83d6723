"""Which positions of a task become its core: ``region.select``. A new choice is an entry of this table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cpift.method.region import Region
from cpift.table import Table


@dataclass(frozen=True)
class Selection:
    """A choice of core positions.

    Attributes:
        name: what ``region.select`` calls it.
        summary: one phrase for help, recipe and docs.
        label: what a model card says of the core positions: "the 1 % of parameters {label}".
        choose: the region, from the one of the largest updates and a text that seeds what is drawn.
        seeded: it draws, so that the recipe's seed decides about the region.
    """

    name: str
    summary: str
    label: str
    choose: Callable[[Region, str], Region]
    seeded: bool = False


def random_region(like: Region, seed: str) -> Region:
    """As many positions of each parameter as ``like`` has, drawn at random: which matter, those moved most, or any?"""
    drawn, rng = {}, np.random.default_rng(list(seed.encode()))
    for name, positions in like.positions.items():
        size = math.prod(like.shapes[name])
        drawn[name] = np.sort(rng.choice(size, len(positions), replace=False)).astype(positions.dtype)
    return Region(drawn, like.total, shapes=like.shapes, base=like.base, statistics=like.statistics)


SELECTIONS = Table(
    "selection",
    [
        Selection("largest", "those moved most", "that each probe moved most", lambda region, seed: region),
        Selection(
            "random", "as many at random, a control", "(drawn at random, as a control)", random_region, seeded=True
        ),
    ],
)
