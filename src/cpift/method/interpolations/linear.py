"""Linear interpolation, one task after the other; with equal weights the mean."""

from __future__ import annotations

import numpy as np

from cpift.method.interpolations.sequence import WEIGHT, WEIGHTS, in_sequence
from cpift.method.interpolations.vectors import Interpolation, Shares, Vectors, Weight


def _linear(vectors: Vectors, weight: Weight) -> Shares:
    if isinstance(weight, tuple):
        return Shares(np.array([1.0 - sum(weight), *weight]))
    return in_sequence(vectors, weight, lambda angle, share, free: (1 - share, share))


LINEAR = Interpolation(
    name="linear",
    label="the mean",
    summary="linear, one task after the other; with equal weights the mean",
    reference="Model soups, arXiv:2203.05482",
    shares=_linear,
    parameters={**WEIGHT, "weights": WEIGHTS},
)
