"""Transplanted one task after the other: the last one stands."""

from __future__ import annotations

from cpift.method.overlap_rules.rule import Claims, Decision, OverlapRule, one_winner


def _order(claims: Claims) -> Decision:
    return one_winner(claims, len(claims.claimed) - 1 - claims.claimed[::-1].argmax(axis=0))


ORDER = OverlapRule(
    name="order",
    label="the later task has the position",
    summary="the last task in the recipe, each transplanted over the one before",
    reference="another reading of arXiv:2508.21741, section 3.3",
    decide=_order,
)
