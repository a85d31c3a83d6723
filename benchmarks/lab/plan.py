"""Which cells each experiment has, in what order: whole units finish one after another, so that a stop leaves balanced
data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lab.arrivals import Cell, orders
from lab.rows import EXPLORE, REPORT

RATES = (5e-4, 1.5e-3, 4.5e-3)
KEPT_RATES = RATES[1:]  # the lowest was too low for every method
KEPT = 64
STEPS = 100
SKILLS, TUNING_SKILLS = 2, 3  # that arrive; the paper's table of forgetting has two
ISOLATED = ["freeze_1", "freeze_10", "freeze_30", "freeze_50", "random_10", "fisher_30"]
INSIDE = ["inside_2", "inside_10", "at_random_2", "at_random_10"]
NONE_KEPT = ["plain", "average", *ISOLATED, "conflict", "bottom", "kl", *INSIDE]
SOME_KEPT = [
    "plain", "average", "freeze_10", "freeze_30", "random_10", "fisher_30", "conflict", "kl", "inside_2", "inside_10", "at_random_10",
]  # fmt: skip
E2_METHODS = {0: NONE_KEPT, KEPT: SOME_KEPT}
E1_METHODS = ["plain", "average", "average_freeze", "average_transplant", "average_both", "average_both_1"]
E1_RATE = 5e-4  # of replay that is not tuned


@dataclass(frozen=True)
class Job:
    """One cell to run.

    Attributes:
        experiment: its name.
        unit: number of the unit.
        model: seed of the pre-trained model.
        cell: the sequence.
        label: what distinguishes the cell within its unit.
    """

    experiment: str
    unit: int
    model: int
    cell: Cell
    label: str

    @property
    def name(self) -> str:
        """Key in the file of outcomes."""
        return f"{self.experiment}/{self.unit}/{self.label}"


def e2_tuning(kept: int, methods: list[str]) -> Iterator[Job]:
    """Three rates a method (two with kept rows), on three of the exploring skills; neither they nor this order are in the tables."""
    order = orders(EXPLORE, 0)[:TUNING_SKILLS]
    for method in methods:
        for rate in KEPT_RATES if kept else RATES:
            cell = Cell(method, order, kept, rate, STEPS, seed=0)
            yield Job(f"e2-{kept}-tuning", 0, 0, cell, f"{method}/{rate:g}")


def e2(kept: int, units: int, methods: list[str], rates: dict[str, float]) -> Iterator[Job]:
    """Every method on two of the reporting skills; a unit is a pre-trained model with an order and a seed of its own."""
    for unit in range(1, units + 1):
        named = [(method, method, rates[method]) for method in methods]
        if kept:  # freezing has another rate than nothing protected: the latter at that rate, too
            named += [(f"plain@{rate:g}", "plain", rate) for rate in KEPT_RATES if rate != rates["plain"]]
        for label, method, rate in named:
            cell = Cell(method, orders(REPORT, unit)[:SKILLS], kept, rate, STEPS, 100 * unit)
            yield Job(f"e2-{kept}", unit, unit, cell, label)


def e1(units: int, rates: dict[str, float]) -> Iterator[Job]:
    """Averaging, freezing, transplanting and the rate; both orders on the same model; a unit is a pre-trained model.

    All that average have the rate tuned for averaging alone, so that isolation is all that is changed among them.
    """
    for unit in range(1, units + 1):
        order = orders(REPORT, unit)[:SKILLS]
        for way, skills in (("forward", order), ("reverse", order[::-1])):
            named = [("untuned", "plain", E1_RATE)]
            named += [(m, m, rates["average" if m.startswith("average") else m]) for m in E1_METHODS]
            for name, method, rate in named:
                cell = Cell(method, skills, KEPT, rate, STEPS, 100 * unit)
                yield Job("e1", unit, unit, cell, f"{way}/{name}")
