"""The mean of the values of all tasks that claim the position."""

from __future__ import annotations

import numpy as np

from cpift.method.overlap_rules.rule import Claims, Decision, OverlapRule


def _mean(claims: Claims) -> Decision:
    total = np.zeros(claims.values.shape[1])
    for values in claims.values:  # in the order of tasks, so that the sum is the same to the bit
        total += values
    return Decision(total / claims.claimed.sum(axis=0), claims.claimed)


MEAN = OverlapRule(
    name="mean",
    label="the position has the mean of the tasks' values",
    summary="the mean of the tasks' values",
    reference="Model soups, arXiv:2203.05482",
    decide=_mean,
)
