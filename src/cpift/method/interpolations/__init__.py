"""Stage 3, fuse: the interpolations of what lies outside the core regions. A new one is a file beside this and a line in the table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cpift.errors import CpiftError
from cpift.method.interpolations.karcher import KARCHER
from cpift.method.interpolations.linear import LINEAR
from cpift.method.interpolations.slerp import SLERP
from cpift.method.interpolations.task_arithmetic import SUM
from cpift.method.interpolations.vectors import EPSILON, Interpolation, Shares, Space, Vectors, Weight
from cpift.table import Table

INTERPOLATIONS = Table[Interpolation]("interpolation", [SLERP, KARCHER, LINEAR, SUM])


@dataclass(frozen=True)
class Combination:
    """What to sum up.

    Attributes:
        coefficients: float64 (N + 2,), of θ⁰, the backbone and each task.
        angles: those met on the way, radians.
    """

    coefficients: np.ndarray
    angles: list[float]


def check_weight(name: str, weight: Weight) -> None:
    """Raise ValueError where the interpolation of this name does not read ``weight``, and it is given."""
    if isinstance(weight, tuple) and "weights" not in INTERPOLATIONS[name].parameters:
        some = ", ".join(entry.name for entry in INTERPOLATIONS.values() if "weights" in entry.parameters)
        raise ValueError(f"{name} takes no weight for each task; {some} do")
    if weight != "equal" and "weight" not in INTERPOLATIONS[name].parameters:
        raise ValueError(f"{name} takes all models alike; leave weight at equal")


def combination(gram: np.ndarray, free: int, interpolation: str, space: Space, weight: Weight) -> Combination:
    """Coefficients for one vector (a tensor's free entries, or the whole model's).

    Args:
        gram: float64 (N + 2, N + 2), see :class:`Vectors`.
        free: number of free entries.
        interpolation: a name in the table.
        space: what is interpolated, the "weights" or the "updates".
        weight: "equal", or a number that the interpolation gives a meaning.

    Raises:
        CpiftError: no such interpolation, or one that takes no weight.
    """
    entry = INTERPOLATIONS.choose(interpolation, "fuse.interpolation")
    try:
        check_weight(interpolation, weight)
    except ValueError as error:
        raise CpiftError(f"fuse.weight: {error}") from None
    vectors = Vectors(gram, free, entry.space or space)
    shares = entry.shares(vectors, weight)
    rest = 1.0 - float(shares.values.sum()) if vectors.space == "updates" else 0.0
    return Combination(np.concatenate([[rest], shares.values]), shares.angles)


__all__ = [
    "EPSILON",
    "INTERPOLATIONS",
    "Combination",
    "Interpolation",
    "Shares",
    "Space",
    "Vectors",
    "Weight",
    "check_weight",
    "combination",
]
