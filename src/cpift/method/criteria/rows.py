"""The positions that matter most for a task's own training rows, by gradients of their losses at its probe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from cpift.checkpoint.align import align
from cpift.checkpoint.reader import open_checkpoint
from cpift.errors import CpiftError
from cpift.method.criteria.criterion import Choice, Criterion, Needs
from cpift.method.region import Region
from cpift.method.scores import magnitudes


def _measured(score: str) -> Callable[[Choice], dict[str, Region]]:
    def choose(choice: Choice) -> dict[str, Region]:
        if choice.measure is None:
            raise CpiftError(f"region.by: {score} needs training rows, and there are none")
        origin, models = choice.open()
        regions = {}
        for task in choice.tuned:
            with tempfile.TemporaryDirectory(prefix="cpift-") as scratch:
                statistics = choice.measure(task, score, Path(scratch))
                read = magnitudes(align(origin, open_checkpoint(scratch)))
                regions[task] = choice.best(origin, models[task], read, statistics)
        return regions

    return choose


FISHER = Criterion(
    name="fisher",
    summary="those of the largest empirical Fisher information on the task's training rows, at its probe",
    label="of the largest Fisher information on each task's rows",
    choose=_measured("fisher"),
    reference="EWC, arXiv:1612.00796; TRACE, arXiv:2605.31025",
    needs=Needs.ROWS,
)
MAGNITUDE_GRADIENT = Criterion(
    name="magnitude_gradient",
    summary="those of the largest |θ·g| on the task's training rows, at its probe",
    label="of the largest |weight · gradient| on each task's rows",
    choose=_measured("magnitude_gradient"),
    reference="SNIP, arXiv:1810.02340",
    needs=Needs.ROWS,
)
