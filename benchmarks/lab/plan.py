"""Which cells each experiment has, in what order: whole units finish one after another, so that a stop leaves balanced
data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.arrivals import Cell, orders
from lab.rows import EXPLORE, REPORT

RATES = (5e-4, 1.5e-3, 4.5e-3, 1.35e-2)
TUNING_MODELS = (0, 101)  # pre-trained models of which no table has a figure
KEPT = (0, 64, 16)
STEPS, E1_STEPS = 200, (40, 120)
SKILLS = 2  # that arrive; the paper's table of forgetting has two
NONE_KEPT = [
    "plain", "average", "average_50", "freeze_1", "freeze_10", "freeze_30", "freeze_50", "random_10", "random_50",
    "fisher_30", "conflict", "bottom", "kl", "kl_10", "ewc_8", "ewc_9", "ewc_10", "osf",
    "inside_2", "inside_10", "inside_30", "at_random_2", "at_random_10", "at_random_30",
]  # fmt: skip
SOME_KEPT = [
    "plain", "average", "freeze_10", "freeze_30", "random_10", "fisher_30", "conflict", "kl", "ewc_8", "ewc_9", "osf",
    "inside_2", "inside_10", "inside_30", "at_random_10", "at_random_30",
]  # fmt: skip
PARETO = ["plain", "average", "freeze_30", "kl", "ewc_9", "inside_10"]
E1_ROWS = 64
E1_TUNED = ["plain", "average"]
E1_METHODS = ["plain", "average", "average_freeze", "average_transplant", "average_both", "average_both_1"]


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


def e2_methods(kept: int) -> list[str]:
    """Methods that are compared."""
    return SOME_KEPT if kept else NONE_KEPT


def tuning(experiment: str, methods: Sequence[str], kept: int, steps: int) -> Iterator[Job]:
    """As many rates for each method, on pairs of the exploring skills; neither they nor their models are in a table."""
    for model in TUNING_MODELS:
        order = orders(EXPLORE, model)[:SKILLS]
        for method in methods:
            for rate in RATES:
                cell = Cell(method, order, kept, rate, steps, seed=100 * model)
                yield Job(f"{experiment}-tuning", model, model, cell, f"{method}/{rate:g}")


def e2(kept: int, units: int, rates: dict[str, float]) -> Iterator[Job]:
    """Every method at its own rate and at that of nothing protected, on two of the reporting skills.

    A unit is a pre-trained model with an order and a seed of its own.
    """
    common = rates["plain"]
    for unit in range(1, units + 1):
        named = [(method, method, rates[method]) for method in e2_methods(kept)]
        named += [(f"{method}@{common:g}", method, common) for method in e2_methods(kept) if rates[method] != common]
        for label, method, rate in named:
            cell = Cell(method, orders(REPORT, unit)[:SKILLS], kept, rate, STEPS, 100 * unit)
            yield Job(f"e2-{kept}", unit, unit, cell, label)


def pareto(kept: int, units: int) -> Iterator[Job]:
    """Some methods at every rate: what is learnt against what is retained."""
    for unit in range(1, units + 1):
        for method in PARETO:
            for rate in RATES:
                cell = Cell(method, orders(REPORT, unit)[:SKILLS], kept, rate, STEPS, 100 * unit)
                yield Job(f"pareto-{kept}", unit, unit, cell, f"{method}@{rate:g}")


def e1(steps: int, units: int, rates: dict[str, float]) -> Iterator[Job]:
    """Averaging, freezing, transplanting and the rate; both orders on the same model; a unit is a pre-trained model.

    All that average have the rate tuned for averaging alone, so that isolation is all that is changed among them.
    """
    for unit in range(1, units + 1):
        order = orders(REPORT, unit)[:SKILLS]
        for way, skills in (("forward", order), ("reverse", order[::-1])):
            named = [("third", "plain", rates["plain"] / 3)]
            named += [(m, m, rates["average" if m.startswith("average") else m]) for m in E1_METHODS]
            if rates["average"] != rates["plain"]:
                averaging = [m for m in E1_METHODS if m.startswith("average")]
                named += [(f"{m}@{rates['plain']:g}", m, rates["plain"]) for m in averaging]
            for name, method, rate in named:
                cell = Cell(method, skills, E1_ROWS, rate, steps, 100 * unit)
                yield Job(f"e1-{steps}", unit, unit, cell, f"{way}/{name}")
