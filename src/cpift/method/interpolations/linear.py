"""Linear interpolation, one task after the other; with equal weights the mean."""

from __future__ import annotations

from cpift.method.interpolations.sequence import WEIGHT, in_sequence
from cpift.method.interpolations.vectors import Interpolation, Shares, Vectors, Weight


def _linear(vectors: Vectors, weight: Weight) -> Shares:
    return in_sequence(vectors, weight, lambda angle, share, free: (1 - share, share))


LINEAR = Interpolation(
    name="linear",
    label="the mean",
    summary="linear, one task after the other; with equal weights the mean",
    reference="Model soups, arXiv:2203.05482",
    shares=_linear,
    parameters=WEIGHT,
)
