"""The positions at which the probes pull in opposite directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cpift.checkpoint.stream import Block, Checkpoint
from cpift.errors import CpiftError
from cpift.method.criteria.choice import Choice
from cpift.method.region import Region
from cpift.method.scores import updates
from cpift.method.top_scores import Read


def _opposed(own: Read, others: Sequence[Read]) -> Read:
    """Δᵢ where another task's update has the opposite sign, 0 elsewhere; a zero update has no sign."""

    def read(block: Block) -> np.ndarray:
        update = own(block)
        sign, opposed = np.sign(update), np.zeros(len(update), np.bool_)
        for other in others:
            opposed |= sign * np.sign(other(block)) < 0
        return np.where(opposed, update, np.float32(0))

    return read


def conflicting(choice: Choice) -> dict[str, Region]:
    r"""Top p % of \|Δ\| where another task's update has the other sign."""
    origin, models = choice.open()
    if len(models) < 2:
        raise CpiftError("region.by: conflict compares the probes of several tasks, and there is one")

    def region(task: str, model: Checkpoint) -> Region:
        others = [updates(origin, other) for name, other in models.items() if name != task]
        read = _opposed(updates(origin, model), others)
        return choice.best(origin, model, read, {"scores": "conflict"}, signed=True)

    return {task: region(task, models[task]) for task in choice.tuned}
