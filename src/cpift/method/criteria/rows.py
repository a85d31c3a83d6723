"""The positions that matter most for a task's own training rows, by gradients of their losses at its probe."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cpift.checkpoint.align import align
from cpift.checkpoint.reader import open_checkpoint
from cpift.errors import CpiftError
from cpift.method.criteria.choice import Choice
from cpift.method.region import Region
from cpift.method.scores import magnitudes


def by_fisher(choice: Choice) -> dict[str, Region]:
    """Top p % of the empirical Fisher information."""
    return _measured(choice, "fisher")


def by_magnitude_gradient(choice: Choice) -> dict[str, Region]:
    r"""Top p % of \|θ·g\|."""
    return _measured(choice, "magnitude_gradient")


def _measured(choice: Choice, score: str) -> dict[str, Region]:
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
