"""The figures of the laboratory's pages, drawn from raw outcomes.

python benchmarks/lab/figures.py           writes them beside the pages
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))
from cpift.compare.units import over_units
from lab import tables_probes
from lab.contrasts import RESULTS, accuracy, cells, complete
from lab.forms import FORMS
from lab.merges import MERGES
from lab.methods import METHODS
from lab.plan import PARETO, RATES
from lab.svg import Difference, curves, forest
from lab.tables import ready
from lab.tables_models import finished, scores_of
from lab.tuning import learning_accuracy, share_right

NAMES = tuple(f"{rate:g}" for rate in RATES)


def learnt_against_retained(kept: int) -> str:
    """E2: the second skill's score and what is left of the first one, each method over its learning rates."""
    units = complete(cells("e2"), f"pareto-{kept}")
    lines: dict[str, list[tuple[float, float]]] = {}
    for method in PARETO:
        for name in NAMES:
            found = [unit[f"{method}@{name}"] for unit in units.values()]
            left = fmean(share_right(cell["stages"][-1]["right"][cell["order"][0]]) for cell in found)
            point = 100 * fmean(map(learning_accuracy, found)), 100 * left
            lines.setdefault(METHODS[method].label, []).append(point)
    title = f"Learnt against retained, {kept} kept rows, {len(units)} units, each point a learning rate"
    return curves(title, "second skill, %", "first skill at the end, %", lines, names=NAMES)


def differences(values: Mapping[str, list[float]], labels: Mapping[str, str], reference: str, title: str) -> str:
    """Each labelled row minus the reference, best first."""
    rows = []
    for name in sorted(values, key=lambda name: -fmean(values[name])):
        gaps = [a - b for a, b in zip(values[name], values[reference], strict=True)]
        if name in labels and name != reference and (estimate := over_units(gaps)) is not None:
            rows.append(Difference(labels[name], estimate.mean, estimate.low, estimate.high))
    return forest(f"{title}, {len(values[reference])} units", "points", rows)


def against(experiment: str, kind: str, title: str) -> str:
    """ACC of each method minus that of plain training, each at its own rate."""
    labels = {name: method.label for name, method in METHODS.items()} | {"third": "a third of the rate"}
    return differences(accuracy(experiment, kind), labels, "plain", title)


def merges() -> str:
    """S: each merge minus task arithmetic."""
    labels = {"base": "the model before"} | {name: merge.label for name, merge in MERGES.items()}
    return differences(scores_of(finished("s", "s-acquainted")), labels, "task_arithmetic", "Minus task arithmetic")


def forms(page: str, experiment: str) -> str:
    """E3 and E4: each form minus multi-task SFT."""
    labels = {name: form.label for name, form in FORMS.items()}
    return differences(scores_of(finished(page, experiment)), labels, "multi", "Minus multi-task SFT at equal steps")


def held() -> str:
    """M1: score of the base with the top p % of an update, with as many at random, and without them."""
    whole = tables_probes.specialists()
    shares = [key.split("/")[1] for key in whole[0][0] if key.startswith("top/")]
    lines = {
        label: [
            (float(s), 100 * fmean(share_right(o[f"{kind}/{s}"]) for found in whole for o in found)) for s in shares
        ]
        for kind, label in (
            ("top", "the top p % alone"),
            ("random", "p % at random"),
            ("without", "without the top p %"),
        )
    }
    return curves(f"What the largest updates hold, {len(whole)} models", "p, %", "skill, %", lines)


def predictors() -> str:
    """M2: rank correlations with the rise of the old skill's loss."""
    pairs = tables_probes.whole_models()
    rows = []
    for key, label in tables_probes.PREDICTORS.items():
        estimate = tables_probes.within(pairs, key, "loss_rise_end")
        if estimate is not None:
            rows.append(Difference(label, estimate.mean, estimate.low, estimate.high))
    return forest("Rank correlation with the rise of the old skill's loss, within an old skill", "", rows)


FIGURES: dict[str, Callable[[], str]] = {
    "e2-0": lambda: against("e2", "e2-0", "ACC minus nothing protected, no kept rows"),
    "e2-64": lambda: against("e2", "e2-64", "ACC minus replay, 64 kept rows"),
    "pareto-0": lambda: learnt_against_retained(0),
    "pareto-64": lambda: learnt_against_retained(64),
    "e1-120": lambda: against("e1", "e1-120", "ACC minus replay, 120 steps"),
    "s": merges,
    "e3": lambda: forms("e3", "e3-small"),
    "e4": lambda: forms("e4", "e4"),
    "m1": held,
    "m2": predictors,
}


def main() -> None:
    """Write every figure."""
    for name, draw in FIGURES.items():
        if "-" in name and not ready(name):
            continue
        (RESULTS / f"{name}.svg").write_text(draw(), encoding="utf-8")
        print(f"{name}.svg")


if __name__ == "__main__":
    main()
