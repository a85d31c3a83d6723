"""Stage 1, identify: which positions are a task's core. A new criterion is a file beside this and an entry of the table."""

from __future__ import annotations

from cpift.method.criteria.criterion import Criterion, Needs
from cpift.table import Table

CRITERIA = Table[Criterion](
    "criterion",
    [
        Criterion(
            name="update",
            summary="those that its probe moved most, |Δ|",
            label="that each probe moved most",
            chooser="cpift.method.criteria.update:largest",
            reference="the paper, arXiv:2508.21741",
        ),
        Criterion(
            name="fisher",
            summary="those of the largest empirical Fisher information on the task's training rows, at its probe",
            label="of the largest Fisher information on each task's rows",
            chooser="cpift.method.criteria.rows:by_fisher",
            reference="EWC, arXiv:1612.00796; TRACE, arXiv:2605.31025",
            needs=Needs.ROWS,
        ),
        Criterion(
            name="magnitude_gradient",
            summary="those of the largest |θ·g| on the task's training rows, at its probe",
            label="of the largest |weight · gradient| on each task's rows",
            chooser="cpift.method.criteria.rows:by_magnitude_gradient",
            reference="SNIP, arXiv:1810.02340",
            needs=Needs.ROWS,
        ),
        Criterion(
            name="conflict",
            summary="of those at which another task's probe moved the other way, those that its own moved most",
            label="that each probe moved most where another moved them the other way",
            chooser="cpift.method.criteria.conflict:conflicting",
            reference="sign conflicts of TIES, arXiv:2306.01708; as a mask, CPL, arXiv:2601.21577",
            needs=Needs.ALL_UPDATES,
        ),
        Criterion(
            name="random",
            summary="as many of each parameter as the largest updates have, drawn at random: a control",
            label="(drawn at random, as a control)",
            chooser="cpift.method.criteria.random:like_the_largest",
            seeded=True,
        ),
        Criterion(
            name="random_model",
            summary="as many, drawn at random over the whole model: a control",
            label="(drawn at random, as a control)",
            chooser="cpift.method.criteria.random:over_the_model",
            reference="SpaRTA, arXiv:2502.15975",
            seeded=True,
        ),
    ],
)
# Their names before there were others; recipes of that time still hold them.
FORMER_NAMES = {"largest": "update"}

__all__ = ["CRITERIA", "FORMER_NAMES", "Criterion", "Needs"]
