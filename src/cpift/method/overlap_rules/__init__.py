"""Stage 3, fuse: what stands at a position of several core regions. A new rule is a file beside this and a line in the table."""

from __future__ import annotations

from cpift.method.overlap_rules.largest import LARGEST
from cpift.method.overlap_rules.mean import MEAN
from cpift.method.overlap_rules.order import ORDER
from cpift.method.overlap_rules.rule import Claims, Decision, OverlapRule, one_winner
from cpift.table import Table

OVERLAP_RULES = Table[OverlapRule]("overlap rule", [LARGEST, ORDER, MEAN])

__all__ = ["OVERLAP_RULES", "Claims", "Decision", "OverlapRule", "one_winner"]
