"""The tables of the laboratory's pages, from raw outcomes.

python benchmarks/lab/tables.py            prints all tables
python benchmarks/lab/tables.py --write    puts them into the pages, between their marks, and packs new outcomes
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from cpift.compare.units import Estimate, holm, over_units
from lab.methods import METHODS
from lab.outcomes import lines
from lab.plan import KEPT, PARETO, RATES
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
E2_PRIMARY = {0: "freeze_10", 16: "inside_10", 64: "inside_10"}
POSITIONS = (
    ("freeze_10", "random_10"), ("freeze_50", "random_50"),
    ("inside_2", "at_random_2"), ("inside_10", "at_random_10"), ("inside_30", "at_random_30"),
)  # fmt: skip
PREDICTORS = {
    "overlap_1": "overlap of the cores, 1 %",
    "overlap_10": "overlap of the cores, 10 %",
    "sign_agreement_10": "sign agreement in both cores, 10 %",
    "cosine_updates": "cosine of the updates",
    "cosine_gradients_base": "cosine of the gradients at the base",
    "update_along_new_gradient": "cosine of the old update and the new gradient",
    "probe_loss_on_old": "loss of the new probe on old rows",
    "probe_drift_on_old": "KL of the new probe on old rows",
    "old_loss_on_new": "loss of the old model on new rows",
    "new_update_norm": "trivial: size of the new probe's update",
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


def arrivals_table(
    by_label: dict[str, list[list[Cell]]], labels: dict[str, str], reference: str, primary: str
) -> Iterator[str]:
    """Rows of methods: the measures, and ACC minus the reference's. Several cells of a unit count as their mean."""
    measured = {
        label: {name: [fmean(map(of, unit)) for unit in units] for name, of in MEASURES.items()}
        for label, units in by_label.items()
    }
    against = contrasts({label: m["ACC"] for label, m in measured.items()}, reference, primary)
    yield f"| method | rate | ACC | learning accuracy | BWT | loss on text | KL | tokens | ACC minus {labels[reference]} | p |"
    yield "|---" * 10 + "|"
    for label, m in sorted(measured.items(), key=lambda item: -fmean(item[1]["ACC"])):
        cell = by_label[label][0][0]
        tokens = fmean(sum(s["tokens"] for s in c["stages"][1:]) for unit in by_label[label] for c in unit)
        row = [labels[label], f"{cell['rate']:g}"]
        row += [f"{fmean(m[name]):.1f}" for name in ("ACC", "learning accuracy", "BWT")]
        row += [f"{fmean(m[name]):.2f}" for name in ("loss on text", "KL")]
        estimate, p = against.get(label, (None, ""))
        yield f"| {' | '.join([*row, f'{tokens:,.0f}', shown(estimate), p])} |"


def first_skill(found: Iterable[Cell]) -> str:
    """How well the first skill is learnt, before the second arrives."""
    scores = [share_right(cell["stages"][0]["right"][cell["order"][0]]) for cell in found]
    return f"The first skill scores {100 * fmean(scores):.1f} when the second arrives."


def e2(kept: int) -> Iterator[str]:
    """Retention."""
    units = complete(cells("e2"), f"e2-{kept}")
    first = next(iter(units.values()))
    own = {label: [[unit[label]] for unit in units.values()] for label in first if "@" not in label}
    labels = {label: METHODS[label].label for label in own}
    yield f"{len(units)} units, {kept} kept rows. {first_skill(unit['plain'] for unit in units.values())}\n"
    yield from arrivals_table(own, labels, "plain", E2_PRIMARY[kept])
    common = first["plain"]["rate"]
    at_common = {m: next(n for n in (f"{m}@{common:g}", m) if n in first and first[n]["rate"] == common) for m in own}
    acc = {m: [MEASURES["ACC"](unit[label]) for unit in units.values()] for m, label in at_common.items()}
    yield f"\nAt one rate for all, {common:g}, so that only the method differs:\n"
    yield "| method | ACC | ACC minus nothing protected | p (Holm) |\n|---|---|---|---|"
    against = contrasts(acc, "plain", "")
    for method, (estimate, p) in sorted(against.items(), key=lambda item: -fmean(acc[item[0]])):
        yield f"| {labels[method]} | {fmean(acc[method]):.1f} | {shown(estimate)} | {p} |"
    at_own = {label: [MEASURES["ACC"](unit[label]) for unit in units.values()] for label in own}
    yield "\nThe final training differs in positions alone; a core of the new skill was found by a probe of 60 steps first:\n"
    yield "| contrast, ACC | at one rate | p (Holm) | at own rates | p (Holm) |\n|---|---|---|---|---|"
    for name, common_cells in positions(acc).items():
        yield f"| {name} | {' | '.join([*common_cells, *positions(at_own)[name]])} |"
    at_one = {
        measure: {m: [MEASURES[measure](unit[label]) for unit in units.values()] for m, label in at_common.items()}
        for measure in ("learning accuracy", "BWT", "KL")
    }
    yield "\nThe same contrasts at one rate, in other measures, not adjusted:\n"
    yield "| contrast | learning accuracy | BWT | KL, nats |\n|---|---|---|---|"
    for name in positions(acc):
        yield (
            f"| {name} | "
            + " | ".join(positions(values, 2 if measure == "KL" else 1)[name][0] for measure, values in at_one.items())
            + " |"
        )
    yield "\nDrift from the pre-trained model on its own text, each method at its own rate, where it is beyond noise. A higher"
    yield "rate drifts further:\n"
    yield "| method | KL minus nothing protected, nats | p (Holm) |\n|---|---|---|"
    drifts = {label: [MEASURES["KL"](unit[label]) for unit in units.values()] for label in own}
    for label, (estimate, p) in contrasts(drifts, "plain", "").items():
        if estimate is not None and float(p) < 0.05:
            yield f"| {labels[label]} | {estimate.mean:+.2f} ({estimate.low:+.2f} … {estimate.high:+.2f}) | {p} |"


def positions(acc: dict[str, list[float]], digits: int = 1) -> dict[str, tuple[str, str]]:
    """Each region minus as many elements at random: the difference, and its p-value."""
    pairs = {
        f"{METHODS[chosen].label} minus as many at random": (chosen, drawn)
        for chosen, drawn in POSITIONS
        if chosen in acc and drawn in acc
    }
    found = {
        name: over_units([a - b for a, b in zip(acc[chosen], acc[drawn], strict=True)])
        for name, (chosen, drawn) in pairs.items()
    }
    p = holm({name: e.p for name, e in found.items() if e is not None})
    return {name: (shown(e, digits), "" if e is None else f"{p[name]:.2g}") for name, e in found.items()}


def kept_rows() -> Iterator[str]:
    """What kept rows add, nothing else being protected."""
    none, some = (complete(cells("e2"), f"e2-{kept}") for kept in (0, 64))
    units = [unit for unit in none if unit in some]
    gap = over_units([MEASURES["ACC"](some[u]["plain"]) - MEASURES["ACC"](none[u]["plain"]) for u in units])
    yield f"64 kept rows minus none, nothing protected, each at its own rate: ACC {shown(gap)}, {len(units)} units."


def pareto() -> Iterator[str]:
    """What is learnt and what is retained, at every rate."""
    yield (
        "| kept rows | method | " + " | ".join(f"{rate:g}" for rate in RATES) + " |\n" + "|---" * (2 + len(RATES)) + "|"
    )
    for kept in KEPT[:2]:
        units = complete(cells("e2"), f"pareto-{kept}")
        for method in PARETO:
            points = []
            for rate in RATES:
                found = [unit[f"{method}@{rate:g}"] for unit in units.values()]
                learnt = 100 * fmean(learning_accuracy(cell) for cell in found)
                retained = 100 * fmean(share_right(cell["stages"][-1]["right"][cell["order"][0]]) for cell in found)
                points.append(f"{learnt:.1f}, {retained:.1f}")
            yield f"| {kept} | {METHODS[method].label} | {' | '.join(points)} |"
    yield f"\n{len(units)} units. Each cell: the second skill's score, what is left of the first one's."


def e1(steps: int) -> Iterator[str]:
    """Averaging, freezing, transplanting, the rate; each unit is the mean of both orders."""
    units = complete(cells("e1"), f"e1-{steps}")
    names = [label.split("/")[1] for label in next(iter(units.values())) if label.startswith("forward/")]
    cells_of = {n: [[unit[f"{way}/{n}"] for way in ("forward", "reverse")] for unit in units.values()] for n in names}
    by_label = {n: found for n, found in cells_of.items() if "@" not in n}
    labels = {n: "replay, a third of the rate" if n == "third" else METHODS[n].label for n in by_label}
    labels["plain"] = "replay"
    plain = (cell for unit in by_label["plain"] for cell in unit)
    yield f"{steps} steps an arrival. {len(units)} units, each the mean of both orders. {first_skill(plain)}\n"
    yield from arrivals_table(by_label, labels, "plain", "average")
    acc = {n: [fmean(MEASURES["ACC"](cell) for cell in unit) for unit in found] for n, found in cells_of.items()}
    same = {n.partition("@")[0]: values for n, values in acc.items() if "@" in n}
    if same:
        rate = cells_of["plain"][0][0]["rate"]
        yield f"\nAll at replay's rate, {rate:g}:\n"
        yield "| method | ACC | ACC minus replay | p (Holm) |\n|---|---|---|---|"
        for name, (estimate, p) in contrasts({"plain": acc["plain"], **same}, "plain", "").items():
            yield f"| {labels[name]} | {fmean(same[name]):.1f} | {shown(estimate)} | {p} |"
    yield "\nWith averaging as the reference, isolation is all that differs, at averaging's rate:\n"
    yield from isolation({name: cells_of[name] for name in by_label if name.startswith("average")}, labels)
    if same:
        yield "\nThe same at replay's rate:\n"
        yield from isolation({n.partition("@")[0]: found for n, found in cells_of.items() if "@" in n}, labels)


def isolation(found: dict[str, list[list[Cell]]], labels: dict[str, str]) -> Iterator[str]:
    """Forms of averaging minus averaging alone: what is retained and learnt, and the drift."""
    yield "| method | ACC minus averaged | p (Holm) | learning accuracy | BWT | KL, nats |\n|---|---|---|---|---|---|"
    measured = {
        name: {n: [fmean(map(of, unit)) for unit in units] for n, of in MEASURES.items()}
        for name, units in found.items()
    }
    for name, (estimate, p) in contrasts({n: m["ACC"] for n, m in measured.items()}, "average", "").items():
        others = [
            over_units([a - b for a, b in zip(measured[name][n], measured["average"][n], strict=True)])
            for n in ("learning accuracy", "BWT", "KL")
        ]
        digits = (1, 1, 2)
        cells_shown = [shown(e, d) for e, d in zip(others, digits, strict=True)]
        yield f"| {labels[name]} | {shown(estimate)} | {p} | {' | '.join(cells_shown)} |"


def specialists() -> list[list[dict[str, str]]]:
    """Outcomes of M1, by model; models that are finished."""
    models: dict[int, list[dict[str, str]]] = {}
    for cell in cells("m1"):
        models.setdefault(int(cell["model"]), []).append(cell["outcomes"])
    most = max(map(len, models.values()))
    return [found for found in models.values() if len(found) == most]


def m1() -> Iterator[str]:
    """How much of a skill the largest updates hold; a unit is the mean over the skills of one model."""
    whole = specialists()
    most = len(whole[0])
    shares = [key.split("/")[1] for key in whole[0][0] if key.startswith("top/")]

    def scores(key: str) -> list[float]:
        return [100 * fmean(share_right(o[key]) for o in found) for found in whole]

    yield f"{len(whole)} models, {most} skills each; the whole update scores {fmean(scores('top/100.0')):.1f}, the base {fmean(scores('base')):.1f}.\n"
    yield "| p, % | share of squared norm, % | top p % alone | p % at random alone | without the top p % | top minus random |"
    yield "|---|---|---|---|---|---|"
    for share in shares:
        top, drawn = scores(f"top/{share}"), scores(f"random/{share}")
        energy = 100 * fmean(float(o[f"energy/{share}"]) for found in whole for o in found)
        gap = over_units([a - b for a, b in zip(top, drawn, strict=True)])
        rest = fmean(scores(f"without/{share}"))
        yield f"| {float(share):g} | {energy:.1f} | {fmean(top):.1f} | {fmean(drawn):.1f} | {rest:.1f} | {shown(gap)} |"


def whole_models() -> list[Cell]:
    """Pairs of M2, of models that are finished."""
    units: dict[int, list[Cell]] = {}
    for cell in cells("m2"):
        units.setdefault(int(cell["unit"]), []).append(cell)
    most = max(map(len, units.values()))
    return [cell for found in units.values() if len(found) == most for cell in found]


def m2() -> Iterator[str]:
    """Rank correlations of predictors with what the old skill loses; with an interval over models or old skills."""
    pairs = whole_models()
    models = len({cell["model"] for cell in pairs})
    most = len(pairs) // models
    points = fmean(cell["observed"]["points_lost_end"] for cell in pairs)
    early = fmean(cell["observed"]["points_lost_early"] for cell in pairs)
    yield (
        f"{models} models, {most} ordered pairs each. After {early_steps()} steps the old skill has lost {early:.1f} points, at the end "
        f"{points:.1f}. Intervals are over the old skills: within each, the new skills are ranked.\n"
    )
    yield "| predictor | with the rise of the old loss, all pairs | within an old skill | with the early rise, within an old skill |"
    yield "|---|---|---|---|"
    for key, label in PREDICTORS.items():
        whole = rank_correlation(*columns(pairs, key, "loss_rise_end"))
        late, soon = (within(pairs, key, f"loss_rise_{when}") for when in ("end", "early"))
        yield f"| {label} | {whole:+.2f} | {correlation(late)} | {correlation(soon)} |"


def early_steps() -> int:
    """Steps of the early look."""
    from lab.probes import EARLY

    return EARLY


def columns(pairs: Sequence[Cell], predictor: str, observed: str) -> tuple[np.ndarray, np.ndarray]:
    """A predictor and an observation, of each pair."""
    x = np.array([cell["predictors"][predictor] for cell in pairs], float)
    y = np.array([cell["observed"][observed] for cell in pairs], float)
    kept = np.isfinite(x) & np.isfinite(y)
    return x[kept], y[kept]


def within(pairs: Sequence[Cell], predictor: str, observed: str) -> Estimate | None:
    """Rank correlation over the new skills, for each old skill (the mean over models); with its interval over old skills."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in pairs:
        groups.setdefault((cell["old"], cell["model"]), []).append(cell)
    found = [(old, rank_correlation(*columns(group, predictor, observed))) for (old, _), group in groups.items()]
    known = [(old, value) for old, value in found if np.isfinite(value)]
    return over_units([value for _, value in known], [old for old, _ in known])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's."""
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else float("nan")


def correlation(estimate: Estimate | None) -> str:
    """A correlation with its interval."""
    return "" if estimate is None else f"{estimate.mean:+.2f} ({estimate.low:+.2f} … {estimate.high:+.2f})"


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


def findings() -> Iterator[str]:
    """The primary contrast of each experiment."""
    yield "| experiment | contrast | difference, points | p | units |\n|---|---|---|---|---|"
    for page, experiment, method, text in (
        ("e1", "e1-120", "average", "averaged with the model before minus replay, 64 kept rows"),
        ("e2", "e2-0", "freeze_10", "cores frozen at 10 % minus nothing protected, no kept rows"),
        ("e2", "e2-64", "inside_10", "only inside own core of 10 % minus nothing protected, 64 kept rows"),
        ("e2", "e2-16", "inside_10", "the same, 16 kept rows"),
    ):
        if not ready(experiment):
            continue
        values = accuracy(page, experiment)
        estimate = over_units([a - b for a, b in zip(values[method], values["plain"], strict=True)])
        assert estimate is not None
        yield f"| [{page.upper()}]({page}.md) | {text} | {shown(estimate)} | {estimate.p:.2g} | {estimate.freedom + 1} |"
    whole = specialists()
    top, drawn = ([100 * fmean(share_right(o[f"{k}/10.0"]) for o in w) for w in whole] for k in ("top", "random"))
    estimate = over_units([a - b for a, b in zip(top, drawn, strict=True)])
    if estimate is None:
        return
    yield (
        f"| [M1](m1.md) | top 10 % of a specialist's update minus 10 % at random, on the base | {shown(estimate)} | "
        f"{estimate.p:.2g} | {estimate.freedom + 1} |"
    )
    from lab.tables_more import findings as more  # needs this module

    yield from more()


TABLES: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "e2-0": ("e2.md", lambda: e2(0)),
    "e2-64": ("e2.md", lambda: e2(64)),
    "e2-16": ("e2.md", lambda: e2(16)),
    "pareto": ("e2.md", pareto),
    "rows": ("e2.md", kept_rows),
    "e1-40": ("e1.md", lambda: e1(40)),
    "e1-120": ("e1.md", lambda: e1(120)),
    "m1": ("m1.md", m1),
    "m2": ("m2.md", m2),
    "findings": ("index.md", findings),
}


def ready(name: str) -> bool:
    """Are the outcomes there of which a table is made?"""
    if name == "findings":
        return all(map(ready, ("e1-120", "e2-0", "e2-64", "m1")))
    if name == "rows":
        return ready("e2-0") and ready("e2-64")
    if name == "pareto":
        return all(map(ready, ("pareto-0", "pareto-64")))
    file = "e2" if name.startswith("pareto-") else name.split("-")[0]
    if not (RESULTS / f"{file}.jsonl.gz").exists():
        return False
    return file not in ("e1", "e2") or any(cell["experiment"] == name for cell in cells(file))


def main() -> None:
    """Print the tables, or write them into their pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--outcomes", type=Path, default=Path("scratch/lab"), help="where run.py has left them")
    args = parser.parse_args()
    if args.write:
        for name in ("e1", "e2", "m1", "m2", "s", "e3", "e4", "b1"):
            if (file := args.outcomes / f"{name}.jsonl").exists():
                data = gzip.compress(file.read_bytes(), mtime=0)
                (RESULTS / f"{name}.jsonl.gz").write_bytes(data)
    from lab.tables_more import MORE  # needs this module

    for name, (page, made) in {**TABLES, **MORE}.items():
        if not (RESULTS / page).exists() or not ready(name):
            continue
        text = "\n".join(made())
        if args.write:
            file = RESULTS / page
            marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.S)
            file.write_text(marks.sub(lambda m, t=text: f"{m[1]}{t}\n{m[2]}", file.read_text()))  # type: ignore[misc]
        else:
            print(f"\n## {name}\n\n{text}")


if __name__ == "__main__":
    main()
