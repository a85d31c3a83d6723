"""One task after the other: v ← keep · v + add · θᵢ, with ω_i = 1/(i+1), or a fixed ω (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

from cpift.method.interpolations.vectors import Shares, Vectors, Weight

Factors = Callable[[float | None, float, int], tuple[float, float]]
WEIGHT = {"weight": "equal: ω = 1/(i+1) for the i-th task; or a fixed ω from 0 to 1"}
WEIGHTS = "a factor of each task's model or update; the backbone has the rest"


def in_sequence(vectors: Vectors, weight: Weight, factors: Factors) -> Shares:
    """Interpolate from the backbone to each task in turn.

    In the space of updates, with equal weights, a backbone whose update is zero takes no part: v begins at the first task.

    Args:
        vectors: the backbone and each task.
        weight: "equal" or ω.
        factors: from the angle (None where one is zero), ω and the number of free entries to the factors of v and θᵢ.
    """
    if isinstance(weight, tuple):  # check_weight has refused it
        raise TypeError("one after the other takes one weight")
    each = vectors.each
    absent = vectors.space == "updates" and weight == "equal" and vectors.norm(each[0]) == 0
    value, tasks = (each[1], each[2:]) if absent else (each[0], each[1:])
    angles = []
    for i, task in enumerate(tasks, start=1):
        share = 1 / (i + 1) if weight == "equal" else float(weight)
        angle = vectors.angle(value, task)
        angles.append(angle or 0.0)
        keep, add = factors(angle, share, vectors.free)
        value = keep * value + add * task
    return Shares(value, angles)
