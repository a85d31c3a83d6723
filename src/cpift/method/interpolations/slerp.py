"""Spherical linear interpolation, one task after the other: the paper's."""

from __future__ import annotations

import numpy as np

from cpift.method.interpolations.sequence import WEIGHT, in_sequence
from cpift.method.interpolations.vectors import EPSILON, Interpolation, Shares, Vectors, Weight


def _slerp(vectors: Vectors, weight: Weight) -> Shares:
    return in_sequence(vectors, weight, slerp_factors)


def slerp_factors(angle: float | None, weight: float, free: int) -> tuple[float, float]:
    """Factors of a and b in SLERP(a, b, ω); those of the linear interpolation where the angle gives none.

    Args:
        angle: of a and b, radians; None where one is zero.
        weight: ω, 0 to 1.
        free: number of entries of a and b.
    """
    if angle is None or free < 2 or angle < EPSILON or angle > np.pi - EPSILON:
        return 1 - weight, weight
    return float(np.sin((1 - weight) * angle) / np.sin(angle)), float(np.sin(weight * angle) / np.sin(angle))


SLERP = Interpolation(
    name="slerp",
    label="spherical interpolation",
    summary="on the sphere, one task after the other",
    reference="arXiv:2508.21741, section 3.3",
    shares=_slerp,
    parameters=WEIGHT,
)
