"""The task that moved the position most has it; equal: the first in the recipe."""

from __future__ import annotations

from cpift.method.overlap_rules.rule import Claims, Decision, OverlapRule, one_winner


def _largest(claims: Claims) -> Decision:
    return one_winner(claims, claims.sizes.argmax(axis=0))  # the first of the greatest


LARGEST = OverlapRule(
    name="largest",
    label="the task with the larger update has the position",
    summary="the task that moved it most; equal: the first in the recipe",
    reference="our reading of arXiv:2508.21741, section 3.3",
    decide=_largest,
)
