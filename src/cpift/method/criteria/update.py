"""The positions that a probe moved most: the paper's core region."""

from __future__ import annotations

from cpift.method.criteria.choice import Choice
from cpift.method.identify import identify
from cpift.method.region import Region
from cpift.method.scores import updates


def largest(choice: Choice) -> dict[str, Region]:
    r"""Top p % of \|Δ\|: single elements in one read of all checkpoints, or whole columns by their mean."""
    if choice.unit == "element":
        return identify(
            choice.base,
            choice.tuned,
            choice.percent,
            include=choice.include,
            exclude=choice.exclude,
            progress=choice.progress,
        )
    origin, models = choice.open()
    return {
        task: choice.best(origin, models[task], updates(origin, models[task]), {}, signed=True, updates=True)
        for task in choice.tuned
    }
