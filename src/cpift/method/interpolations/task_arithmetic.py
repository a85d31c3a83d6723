"""Task arithmetic: the updates of all tasks, each times a factor, added to the backbone."""

from __future__ import annotations

import numpy as np

from cpift.method.interpolations.sequence import WEIGHTS
from cpift.method.interpolations.vectors import Interpolation, Shares, Vectors, Weight


def _sum(vectors: Vectors, weight: Weight) -> Shares:
    if isinstance(weight, tuple):
        return Shares(np.array([1.0, *weight]))
    factor = 1.0 if weight == "equal" else float(weight)
    return Shares(np.array([1.0] + [factor] * (vectors.count - 1)))


SUM = Interpolation(
    name="sum",
    label="the sum",
    summary="the updates of all tasks added to the backbone",
    reference="Task arithmetic, arXiv:2212.04089",
    shares=_sum,
    parameters={"weight": "factor of each task's update, 0 to 1; equal is 1", "weights": WEIGHTS},
    space="updates",
)
