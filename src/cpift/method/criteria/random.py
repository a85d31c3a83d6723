"""Positions drawn at random, as controls: which matter, those moved most, or any?"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from cpift.checkpoint.stream import fingerprint
from cpift.method.criteria.choice import Choice
from cpift.method.criteria.update import largest
from cpift.method.identify import core_count
from cpift.method.region import Region
from cpift.method.top_scores import column_positions, columns_of

Shape = tuple[int, ...]


def _generator(choice: Choice, task: str) -> np.random.Generator:
    return np.random.default_rng(list(f"{choice.seed}/{task}".encode()))


def like_the_largest(choice: Choice) -> dict[str, Region]:
    """As many positions, or columns, of each parameter as the largest updates have."""
    regions = {}
    for task, like in largest(choice).items():
        rng, drawn = _generator(choice, task), {}
        for name, positions in like.positions.items():
            shape = like.shapes[name]
            if choice.unit == "element":
                chosen = rng.choice(math.prod(shape), len(positions), replace=False)
                drawn[name] = np.sort(chosen).astype(positions.dtype)
            else:
                columns, length = columns_of(shape)
                chosen = rng.choice(columns, len(positions) // length, replace=False)
                drawn[name] = column_positions(shape, chosen)
        regions[task] = Region(drawn, like.total, shapes=like.shapes, base=like.base, statistics=like.statistics)
    return regions


def over_the_model(choice: Choice) -> dict[str, Region]:
    """As many positions of the whole model, each as likely; columns until the next would exceed the share."""
    origin, _ = replace(choice, tuned={}, others={}).open()
    shapes = choice.shapes(origin)
    total, base = sum(map(math.prod, shapes.values())), fingerprint(origin)
    count, draw = core_count(choice.percent, total), {"element": _elements, "column": _columns}[choice.unit]
    regions = {}
    for task in choice.tuned:
        drawn = draw(_generator(choice, task), shapes, count)
        held = {name: shapes[name] for name in drawn}
        regions[task] = Region(drawn, total, shapes=held, percent=choice.percent, base=base)
    return regions


def _elements(rng: np.random.Generator, shapes: dict[str, Shape], count: int) -> dict[str, np.ndarray]:
    """``count`` different positions of all parameters together."""
    drawn, start, positions = distinct(rng, sum(map(math.prod, shapes.values())), count), 0, {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        first, last = np.searchsorted(drawn, [start, start + size])
        if last > first:
            positions[name] = (drawn[first:last] - start).astype(np.int32 if size < 2**31 else np.int64)
        start += size
    return positions


def _columns(rng: np.random.Generator, shapes: dict[str, Shape], count: int) -> dict[str, np.ndarray]:
    """Columns of all parameters together, each as likely."""
    sizes = {name: columns_of(shape) for name, shape in shapes.items()}
    lengths = np.repeat([length for _, length in sizes.values()], [columns for columns, _ in sizes.values()])
    order = rng.permutation(len(lengths))
    chosen = np.sort(order[: int(np.searchsorted(np.cumsum(lengths[order]), count, side="right"))])
    positions, start = {}, 0
    for name, (columns, _) in sizes.items():
        first, last = np.searchsorted(chosen, [start, start + columns])
        if last > first:
            positions[name] = column_positions(shapes[name], chosen[first:last] - start)
        start += columns
    return positions


def distinct(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    """``count`` different numbers below ``total``, sorted, int64; each set of them is as likely.

    Memory goes with ``count``, where that is at most half of ``total``.
    """
    if count > total // 2:
        left = np.ones(total, np.bool_)
        left[distinct(rng, total, total - count)] = False
        return np.flatnonzero(left)
    drawn = np.empty(0, np.int64)
    while len(drawn) < count:
        drawn = np.sort(np.concatenate([drawn, rng.integers(total, size=count - len(drawn))]))
        drawn = drawn[np.append(True, drawn[1:] != drawn[:-1])]
    return drawn
