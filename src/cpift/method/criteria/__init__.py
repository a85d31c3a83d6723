"""Stage 1, identify: which positions are a task's core. A new criterion is a file beside this and a line in the table."""

from __future__ import annotations

from cpift.method.criteria.conflict import CONFLICT
from cpift.method.criteria.criterion import UNITS, Choice, Criterion, Needs
from cpift.method.criteria.random import RANDOM, RANDOM_MODEL
from cpift.method.criteria.rows import FISHER, MAGNITUDE_GRADIENT
from cpift.method.criteria.update import UPDATE
from cpift.table import Table

CRITERIA = Table[Criterion]("criterion", [UPDATE, FISHER, MAGNITUDE_GRADIENT, CONFLICT, RANDOM, RANDOM_MODEL])
# Their names before there were others; recipes of that time still hold them.
FORMER_NAMES = {"largest": UPDATE.name}

__all__ = ["CRITERIA", "FORMER_NAMES", "UNITS", "Choice", "Criterion", "Needs"]
