"""A comparison's learning rates: which each method was given, and by which scores, where they were tuned."""

from __future__ import annotations

from cpift.metrics.comparison import ComparisonRecord
from cpift.report.html import Html, paragraph, table


def tuning_table(record: ComparisonRecord) -> list[Html]:
    """What was tried of each method and what was chosen; nothing where nothing was tuned.

    Args:
        record: the comparison.
    """
    tuned = record.get("tuning", {})
    if not tuned:
        return []
    factors = sorted({factor for trials in tuned.values() for factor in trials["scores"]}, key=float)
    rows = [
        [
            method,
            f"× {trials['factor']:.4g}" + " (at the edge)" * trials["at_the_edge"],
            *(f"{trials['scores'][factor]:.3f}" if factor in trials["scores"] else None for factor in factors),
        ]
        for method, trials in tuned.items()
    ]
    note = (
        "Learning rates, times the recipe's: mean score of each method's trials, on rows held out from training that no "
        "result is evaluated on."
    )
    if any(trials["at_the_edge"] for trials in tuned.values()):
        note += " At the edge: the best one tried has no further one on one side; a higher --tune tries more."
    headers = ["method", "chosen", *(f"× {float(factor):.4g}" for factor in factors)]
    return [paragraph(note, "soft"), table(headers, rows, kind="cards")]
