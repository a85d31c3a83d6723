"""Tables of S and M1 on SmolLM2: merges of three specialists, and what the largest updates hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean

from cpift.compare.units import Estimate, over_units
from lab.contrasts import Cell, cells, shown
from lab.merges import MERGES
from lab.smol_plan import SHARES, SUITES, TRIALS, WIDE
from lab.tables_models import Units, finished, gap, score, scores_of, setting, table
from lab.tuning import rights, share_right

LEAST = 3  # units of an interval; fewer are shown as they are
LABELS = {label: MERGES[label].label for label in TRIALS if label in MERGES} | {
    "base": "the model before",
    "specialists": "each specialist on its own task",
    "soup": "mean of the specialists, not tuned",
    "ties@usual": "TIES, not tuned",
    "stitch@usual": "stitched cores, not tuned",
    "peer": "the better of task arithmetic and TIES",
    WIDE: "stitched cores, p of 30, 50 or 100",
    "stitch_random": "control: at random, as many in each tensor",
}


def units_of(suite: str) -> Units:
    """Finished units, with ``peer``: the one of task arithmetic and TIES that was better on the rows for tuning."""
    units = finished("smol", f"s-{suite}")
    for unit in units.values():
        better = max(("task_arithmetic", "ties"), key=lambda label: best_trial(unit[label]))
        unit["peer"] = {**unit[better], "setting": MERGES[better].label}
    return units


def best_trial(cell: Cell) -> tuple[float, float]:
    """Score and negative loss of the trial that was chosen."""
    return max((score, -loss) for _, score, loss in cell["trials"])


def of_task(task: str) -> Callable[[list[Cell]], str]:
    """Mean score on a task."""
    return lambda own: f"{fmean(100 * share_right(cell['right'][task]) for cell in own):.0f}"


def over_rows(one: Cell, other: Cell) -> str:
    """Difference of two mean scores, with its standard error over the same rows: not over draws or seeds."""
    gaps = [100 * (rights(one["right"][t]).astype(float) - rights(bits)) for t, bits in other["right"].items()]
    error = math.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps)) / len(gaps)
    return f"{fmean(gap.mean() for gap in gaps):+.1f} ± {error:.1f}"


def single(units: Units, columns: Mapping[str, Callable[[list[Cell]], str]]) -> Iterator[str]:
    """Too few units for an interval: each as it is."""
    yield f"{'One unit' if len(units) == 1 else f'{len(units)} units'}: no interval; ± is one standard error over the rows alone.\n"
    yield f"| method | {' | '.join(columns)} | score | minus {LABELS['peer']} |"
    yield "|---" * (len(columns) + 3) + "|"
    for label, row in sorted(scores_of(units).items(), key=lambda item: -fmean(item[1])):
        own = [unit[label] for unit in units.values()]
        each = "; ".join(f"{value:.1f}" for value in row)
        gaps = "; ".join(over_rows(unit[label], unit["peer"]) for unit in units.values()) if label != "peer" else ""
        yield f"| {LABELS[label]} | {' | '.join(made(own) for made in columns.values())} | {each} | {gaps} |"


def s(suite: str) -> Iterator[str]:
    """Merges of given specialists, by their mean score."""
    units = units_of(suite)
    if not units:
        yield "Not run."
        return
    columns = {"setting": setting} | {task: of_task(task) for task in SUITES[suite]}
    if len(units) < LEAST:
        yield from single(units, columns)
        return
    yield f"{len(units)} units, three specialists each.\n"
    yield from table(units, LABELS, "peer", "stitch", columns)
    values = scores_of(units)
    yield "\n| stitched cores minus | difference, not adjusted |\n|---|---|"
    for other in ("stitch_random", "task_arithmetic", "ties", "dare", "soup", "base"):
        yield f"| {LABELS[other]} | {gap(values, 'stitch', other)} |"


def held(suite: str) -> dict[int, list[dict[str, str]]]:
    """Outcomes of M1 by unit, of units whose tasks are all there."""
    units: dict[int, list[dict[str, str]]] = {}
    for cell in cells("smol"):
        if cell["experiment"] == f"m1-{suite}":
            units.setdefault(int(cell["unit"]), []).append(cell["outcomes"])
    return {unit: found for unit, found in sorted(units.items()) if len(found) == len(SUITES[suite])}


def means(suite: str, key: str) -> list[float]:
    """Mean score over the tasks, in points, one a unit."""
    return [100 * fmean(share_right(o[key]) for o in found) for found in held(suite).values()]


def top_minus_random(suite: str, share: float) -> Estimate | None:
    """The contrast of M1."""
    pairs = zip(means(suite, f"top/{share}"), means(suite, f"random/{share}"), strict=True)
    return over_units([a - b for a, b in pairs])


def m1(suite: str) -> Iterator[str]:
    """How much of a task the largest updates hold; a unit is the mean over its tasks."""
    found, units = held(suite), units_of(suite)
    if not found:
        yield "Not run."
        return
    whole, before = (fmean(score(units[u][label]) for u in found) for label in ("specialists", "base"))
    count = f"{len(found)} {'unit' if len(found) == 1 else 'units'}"
    yield f"{count}, three tasks each; the whole update scores {whole:.1f}, the base {before:.1f}.\n"
    yield "| p, % | share of squared norm, % | top p % alone | p % at random alone | without the top p % | top minus random |"
    yield "|---|---|---|---|---|---|"
    for share in SHARES:
        energy = 100 * fmean(float(o[f"energy/{share}"]) for parts in found.values() for o in parts)
        columns = [f"{fmean(means(suite, f'{kind}/{share}')):.1f}" for kind in ("top", "random", "without")]
        estimate = top_minus_random(suite, share)
        enough = len(found) >= LEAST
        difference = shown(estimate) if enough else f"{float(columns[0]) - float(columns[1]):+.1f}"
        yield f"| {share:g} | {energy:.1f} | {' | '.join(columns)} | {difference} |"


def findings() -> Iterator[str]:
    """Rows of the primary contrasts, for the index; of suites with enough units."""
    for suite in SUITES:
        for page, estimate, what in (
            ("M1", top_minus_random(suite, 10.0), "top 10 % minus 10 % at random, on the base"),
            ("S", _primary(suite), "stitched cores minus the better of task arithmetic and TIES"),
        ):
            if estimate is not None and estimate.freedom + 1 >= LEAST:
                text = f"SmolLM2-135M, {suite} tasks: {what}"
                yield f"| [{page}]({page.lower()}.md#smollm2) | {text} | {shown(estimate)} | {estimate.p:.2g} | {estimate.freedom + 1} |"


def _primary(suite: str) -> Estimate | None:
    units = units_of(suite)
    values = scores_of(units) if units else {"stitch": [], "peer": []}
    return over_units([a - b for a, b in zip(values["stitch"], values["peer"], strict=True)])


TABLES: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    f"smol-{name}-{suite}": (f"{name}.md", lambda made=made, suite=suite: made(suite))  # type: ignore[misc]
    for suite in SUITES
    for name, made in (("s", s), ("m1", m1))
}
