"""Raw outcomes by unit, what is measured in them, and differences over units with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cpift.compare.units import Estimate, holm, over_units
from lab.outcomes import lines
from lab.tuning import final_accuracy, learning_accuracy, share_right

RESULTS = Path(__file__).parents[2] / "docs" / "results"
Cell = dict[str, Any]
MEASURES: dict[str, Callable[[Cell], float]] = {
    "ACC": lambda cell: 100 * final_accuracy(cell),
    "learning accuracy": lambda cell: 100 * learning_accuracy(cell),
    "BWT": lambda cell: 100 * backward_transfer(cell),
    "loss on text": lambda cell: float(cell["stages"][-1]["text_loss"]),
    "KL": lambda cell: float(cell["stages"][-1]["drift"]),
}


def cells(name: str) -> list[Cell]:
    """Finished cells of an experiment."""
    return list(lines(RESULTS / f"{name}.jsonl.gz"))


def backward_transfer(cell: Cell) -> float:
    """Mean change of each skill but the last, from its arrival to the end (BWT), -1 to 1."""
    stages = cell["stages"]
    last = stages[-1]["right"]
    return fmean(share_right(last[s["task"]]) - share_right(s["right"][s["task"]]) for s in stages[:-1])


def complete(found: Sequence[Cell], experiment: str) -> dict[int, dict[str, Cell]]:
    """Units that have every method: unit to label to cell."""
    units: dict[int, dict[str, Cell]] = {}
    for cell in found:
        if cell["experiment"] == experiment:
            units.setdefault(int(cell["unit"]), {})[str(cell["label"])] = cell
    most = max(map(len, units.values()))
    return {unit: labels for unit, labels in sorted(units.items()) if len(labels) == most}


def shown(estimate: Estimate | None, digits: int = 1) -> str:
    """A difference with its interval."""
    if estimate is None:
        return ""
    mean, low, high = (f"{value:+.{digits}f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} ({low} … {high})"


def contrasts(values: dict[str, list[float]], reference: str, primary: str) -> dict[str, tuple[Estimate | None, str]]:
    """Each row minus the reference, with the p-value: the primary one as it is, all others by Holm."""
    found = {
        name: over_units([a - b for a, b in zip(row, values[reference], strict=True)])
        for name, row in values.items()
        if name != reference
    }
    secondary = holm({name: e.p for name, e in found.items() if e is not None and name != primary})
    return {
        name: (e, "" if e is None else f"{e.p:.2g} (primary)" if name == primary else f"{secondary[name]:.2g}")
        for name, e in found.items()
    }


def accuracy(name: str, experiment: str) -> dict[str, list[float]]:
    """ACC by method, one value a unit (the mean of both orders, where there are two)."""
    values: dict[str, list[float]] = {}
    for unit in complete(cells(name), experiment).values():
        grouped: dict[str, list[float]] = {}
        for label, cell in unit.items():
            grouped.setdefault(label.split("/")[-1], []).append(MEASURES["ACC"](cell))
        for label, found in grouped.items():
            values.setdefault(label, []).append(fmean(found))
    return values
