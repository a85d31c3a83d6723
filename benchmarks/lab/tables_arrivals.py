"""Tables of E1 and E2, in which skills arrive one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import fmean

from cpift.compare.units import holm, over_units
from lab.contrasts import MEASURES, Cell, cells, complete, contrasts, shown
from lab.methods import METHODS
from lab.plan import KEPT, PARETO, RATES
from lab.tuning import learning_accuracy, share_right

E2_PRIMARY = {0: "freeze_10", 16: "inside_10", 64: "inside_10"}
POSITIONS = (
    ("freeze_10", "random_10"), ("freeze_50", "random_50"),
    ("inside_2", "at_random_2"), ("inside_10", "at_random_10"), ("inside_30", "at_random_30"),
)  # fmt: skip


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
            yield f"| {labels[label]} | {shown(estimate, 2)} | {p} |"


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
