"""The rate of each method: the best of as many trials for each, on skills that are in no table."""

from __future__ import annotations

import base64
from statistics import fmean
from typing import Any

import numpy as np

from lab.outcomes import Log


def rights(text: str) -> np.ndarray:
    """Packed outcomes as 0 and 1, one a row."""
    count, _, data = text.partition(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(data), np.uint8))[: int(count)]


def share_right(text: str) -> float:
    """Share of packed outcomes that are right."""
    return float(rights(text).mean())


def final_accuracy(cell: Any) -> float:
    """Mean over the skills after the last arrival (ACC), 0 to 1."""
    return fmean(share_right(bits) for bits in cell["stages"][-1]["right"].values())


def learning_accuracy(cell: Any) -> float:
    """Mean score of each skill when it has just arrived, the first left out, 0 to 1."""
    return fmean(share_right(stage["right"][stage["task"]]) for stage in cell["stages"][1:])


def best_rates(log: Log, experiment: str) -> dict[str, float]:
    """Each method's rate of the highest sum of final and learning accuracy, the mean over the tuning models.

    Of equal ones the lower rate. Without old rows the final accuracy alone is as high where nothing is learnt.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for cell in log.done.values():
        if cell["experiment"] == experiment:
            rates = found.setdefault(str(cell["method"]), {})
            score = final_accuracy(cell) + learning_accuracy(cell)
            rates.setdefault(float(str(cell["rate"])), []).append(score)
    return {method: max(rates, key=lambda rate: (fmean(rates[rate]), -rate)) for method, rates in found.items()}
