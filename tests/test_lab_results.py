"""The laboratory's published figures, recomputed from raw outcomes with plain numpy and scipy; no code of the tables is used."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def outcomes(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress((RESULTS / f"{name}.jsonl.gz").read_bytes()).splitlines()]


def table(page: str, name: str) -> list[list[str]]:
    """Rows of the tables between a page's marks, without heads."""
    text = re.search(rf"<!-- table: {name} -->\n(.*?)<!-- end -->", (RESULTS / page).read_text(), re.S)
    assert text is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text[1].splitlines() if line[:1] == "|"]
    return [
        row
        for row in rows
        if not set(row[0]) <= {"-"}
        and row[0] not in {"method", "p, %", "predictor", "rule", "what alone differs", "stitched cores minus"}
    ]


def score(text: str) -> float:
    """In points, of packed outcomes."""
    count, data = text.split(":")
    return 100 * float(np.unpackbits(np.frombuffer(base64.b64decode(data), np.uint8), count=int(count)).mean())


def measures(cell: dict[str, Any]) -> tuple[float, float, float]:
    """ACC, learning accuracy and BWT."""
    order, stages = cell["order"], cell["stages"]
    matrix = np.full((len(order), len(order)), np.nan)
    for i, stage in enumerate(stages):
        for j in range(i + 1):
            matrix[i, j] = score(stage["right"][order[j]])
    diagonal = matrix.diagonal()
    return matrix[-1].mean(), diagonal[1:].mean(), (matrix[-1, :-1] - diagonal[:-1]).mean()


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and Student's interval."""
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return float(values.mean()), float(found.low), float(found.high)


def numbers(text: str) -> list[float]:
    return [float(part) for part in re.findall(r"[-+]?\d+(?:\.\d+)?(?:e-\d+)?", text.replace(",", ""))]


def by_label(experiment: str, kind: str) -> dict[str, dict[int, tuple[float, float, float]]]:
    found: dict[str, dict[int, list[tuple[float, float, float]]]] = {}
    for cell in outcomes(experiment):
        if cell["experiment"] == kind:
            label = cell["label"].split("/")[-1]
            found.setdefault(label, {}).setdefault(cell["unit"], []).append(measures(cell))
    cells = {label: {u: np.mean(v, axis=0) for u, v in units.items()} for label, units in found.items()}
    counts = {(label, u): len(v) for label, units in found.items() for u, v in units.items()}
    most = max(counts.values())
    whole = set.intersection(*({u for u in units if counts[label, u] == most} for label, units in cells.items()))
    return {label: {u: tuple(units[u]) for u in sorted(whole)} for label, units in cells.items()}


@pytest.mark.parametrize(
    ("name", "page", "experiment"),
    [
        ("e2-0", "e2.md", "e2"), ("e2-64", "e2.md", "e2"),
        ("e1-40", "e1.md", "e1"), ("e1-120", "e1.md", "e1"),
    ],
)  # fmt: skip
def test_tables_of_arrivals(name: str, page: str, experiment: str) -> None:
    found = {label: units for label, units in by_label(experiment, name).items() if "@" not in label}
    rows = [row for row in table(page, name) if len(row) == 10]
    assert len(rows) == len(found)
    reference = np.array([values[0] for values in found["plain"].values()])
    expected = {}
    for label, units in found.items():
        mean = np.mean(list(units.values()), axis=0)
        gap = np.array([values[0] for values in units.values()]) - reference
        expected[label] = (mean, None if label == "plain" else interval(gap))
    left = dict(expected)
    for row in rows:  # sorted by ACC; a row belongs to the method of the same figures
        acc, learnt, bwt = (float(cell) for cell in row[2:5])
        matches = [
            label for label, (mean, gap) in left.items()
            if mean == pytest.approx([acc, learnt, bwt], abs=0.0501)
            and (row[8] == "" if gap is None else bool(row[8]) and numbers(row[8]) == pytest.approx(gap, abs=0.0501))
        ]  # fmt: skip
        assert matches, row
        del left[matches[0]]


def test_table_of_what_the_largest_updates_hold() -> None:
    models: dict[int, list[dict[str, str]]] = {}
    for cell in outcomes("m1"):
        models.setdefault(cell["model"], []).append(cell["outcomes"])
    most = max(map(len, models.values()))
    whole = [found for found in models.values() if len(found) == most]
    for row in table("m1.md", "m1"):
        share = str(float(row[0]))
        top, drawn, rest = (
            np.array([np.mean([score(o[f"{kind}/{share}"]) for o in found]) for found in whole])
            for kind in ("top", "random", "without")
        )
        assert [float(cell) for cell in row[2:5]] == pytest.approx([top.mean(), drawn.mean(), rest.mean()], abs=0.0501)
        if len(whole) > 1 and np.ptp(top - drawn) > 0:
            assert numbers(row[5]) == pytest.approx(interval(top - drawn), abs=0.0501)


@pytest.mark.parametrize(("place", "experiment", "kind", "method"), [
    (0, "e1", "e1-120", "average"), (1, "e2", "e2-0", "freeze_10"),
    (2, "e2", "e2-64", "inside_10"),
])  # fmt: skip
def test_primary_contrasts(place: int, experiment: str, kind: str, method: str) -> None:
    found = by_label(experiment, kind)
    gap = np.array([found[method][unit][0] - found["plain"][unit][0] for unit in found[method]])
    row = [row for row in table("index.md", "findings") if row[0] != "experiment"][place]
    assert numbers(row[2]) == pytest.approx(interval(gap), abs=0.0501)
    assert float(row[3]) == pytest.approx(stats.ttest_1samp(gap, 0).pvalue, rel=0.06)
    assert int(row[4]) == len(gap)


@pytest.mark.parametrize("kind", ["e2-0", "e2-64"])
def test_regions_against_as_many_at_random(kind: str) -> None:
    """At the rate of nothing protected: each cell is looked up by its rate in the raw outcomes."""
    cells = [cell for cell in outcomes("e2") if cell["experiment"] == kind]
    (rate,) = {cell["rate"] for cell in cells if cell["label"] == "plain"}

    def accuracies(method: str, measure: int = 0) -> np.ndarray:
        return np.array([measures(c)[measure] for c in cells if c["method"] == method and c["rate"] == rate])

    section = (RESULTS / "e2.md").read_text().split(f"<!-- table: {kind} -->")[1].split("<!-- end -->")[0]
    lines = [line for line in section.splitlines() if "minus as many at random" in line]
    assert lines
    for line in lines:
        cell = [part.strip() for part in line.strip("|").split("|")]
        kind_of, share = ("freeze", "random") if "frozen" in cell[0] else ("inside", "at_random"), numbers(cell[0])[0]
        if len(cell) == 4:  # learning accuracy, BWT and drift of the same
            for column, place in ((1, 1), (2, 2)):
                gap = np.subtract(*(accuracies(f"{name}_{share:g}", place) for name in kind_of))
                assert numbers(cell[column]) == pytest.approx(interval(gap), abs=0.0501)
            continue
        chosen, drawn = (accuracies(f"{name}_{share:g}") for name in kind_of)
        assert numbers(cell[1]) == pytest.approx(interval(chosen - drawn), abs=0.0501)
        own = (np.array([measures(c)[0] for c in cells if c["label"] == f"{name}_{share:g}"]) for name in kind_of)
        assert numbers(cell[3]) == pytest.approx(interval(np.subtract(*own)), abs=0.0501)


def test_what_kept_rows_add() -> None:
    none, some = (by_label("e2", f"e2-{kept}")["plain"] for kept in (0, 64))
    (line,) = (
        line for line in (RESULTS / "e2.md").read_text().splitlines() if line.startswith("64 kept rows minus none")
    )
    gap = np.array([some[unit][0] - none[unit][0] for unit in none])
    assert numbers(line.split("ACC")[1])[:3] == pytest.approx(interval(gap), abs=0.0501)


@pytest.mark.parametrize("steps", [40, 120])
def test_isolation_added_to_averaging(steps: int) -> None:
    """ACC, learning accuracy and BWT of both orders, minus those of averaging alone, at averaging's rate and replay's."""
    found = by_label("e1", f"e1-{steps}")
    section = (RESULTS / "e1.md").read_text().split(f"<!-- table: e1-{steps} -->")[1].split("<!-- end -->")[0]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    rows = [row for row in rows if len(row) == 6 and row[0].startswith("averaged,")]
    forms = ["average_freeze", "average_transplant", "average_both", "average_both_1"]
    suffixes = ["", *sorted({label[label.index("@") :] for label in found if "@" in label})]
    assert len(rows) == len(forms) * len(suffixes)
    for row, (suffix, form) in zip(rows, ((s, f) for s in suffixes for f in forms), strict=True):
        one, alone = found[form + suffix], found["average" + suffix]
        for column, measure in ((1, 0), (3, 1), (4, 2)):
            gap = np.array([one[unit][measure] - alone[unit][measure] for unit in one])
            assert numbers(row[column]) == pytest.approx(interval(gap), abs=0.0501)


def test_table_of_predictors() -> None:
    """Spearman's within each old skill and model, the mean over models, Student's interval over old skills."""
    cells = outcomes("m2")
    count = max(sum(c["unit"] == u for c in cells) for u in {c["unit"] for c in cells})
    cells = [c for c in cells if sum(d["unit"] == c["unit"] for d in cells) == count]
    rows = {row[0]: row for row in table("m2.md", "m2")}
    for label, key in (
        ("overlap of the cores, 10 %", "overlap_10"),
        ("loss of the new probe on old rows", "probe_loss_on_old"),
    ):
        for column, observed in ((2, "loss_rise_end"), (3, "loss_rise_early"), (4, "points_lost_end")):
            values = []
            for old in dict.fromkeys(c["old"] for c in cells):
                found = []
                for unit in {c["unit"] for c in cells}:
                    group = [c for c in cells if c["old"] == old and c["unit"] == unit]
                    x = [c["predictors"][key] for c in group]
                    y = [c["observed"][observed] for c in group]
                    if len(set(y)) > 1:  # where all is lost alike there is no rank
                        found.append(stats.spearmanr(x, y).statistic)
                values += [np.mean(found)] if found else []
            assert numbers(rows[label][column]) == pytest.approx(interval(np.array(values)), abs=0.00501)


def by_label_and_unit(page: str, experiment: str) -> dict[str, dict[int, float]]:
    """Mean scores of whole units, in points."""
    found: dict[str, dict[int, float]] = {}
    for cell in outcomes(page):
        if cell["experiment"] == experiment:
            found.setdefault(cell["label"], {})[cell["unit"]] = float(
                np.mean([score(x) for x in cell["right"].values()])
            )
    most = max(len(units) for units in found.values())
    whole = [u for u in next(iter(found.values())) if all(u in units for units in found.values())]
    assert len(whole) >= most - 1
    return {label: {u: units[u] for u in sorted(whole)} for label, units in found.items()}


MODELS = [  # page, experiment, of what alone the table shows the difference: label and reference
    ("s", "s-acquainted", "stitch", "task_arithmetic"), ("e3", "e3-small", "stitch_frozen", "multi"),
    ("e4", "e4", "stitch_mixed", "multi"), ("b1", "b1", "random", "grouped"),
]  # fmt: skip


@pytest.mark.parametrize(("page", "experiment", "one", "reference"), MODELS)
def test_tables_of_single_models(page: str, experiment: str, one: str, reference: str) -> None:
    """Every row is one label's mean and its difference to the reference; the primary p-value is as it is."""
    found = by_label_and_unit(page, experiment)
    base = np.array(list(found[reference].values()))
    left = {label: np.array(list(units.values())) for label, units in found.items()}
    rows = [row for row in table(f"{page}.md", experiment) if len(row) >= 5]
    for row in rows:
        matches = [
            label for label, values in left.items()
            if float(row[-3]) == pytest.approx(values.mean(), abs=0.0501)
            and (row[-2] == "" if label == reference or np.ptp(values - base) == 0 else
                 bool(row[-2]) and numbers(row[-2]) == pytest.approx(interval(values - base), abs=0.0501))
        ]  # fmt: skip
        assert matches, row
        if "primary" in row[-1]:
            assert one in matches
            p = stats.ttest_1samp(np.array(list(found[one].values())) - base, 0).pvalue
            assert float(row[-1].split()[0]) == pytest.approx(p, rel=0.06)
        del left[one if one in matches else matches[0]]
    assert len(rows) >= 3
    assert sum("primary" in row[-1] for row in rows) == 1
    shown = [row for row in table("index.md", "findings") if f"({page}.md)" in row[0]]
    gap = np.array(list(found[one].values())) - base
    assert numbers(shown[0][2]) == pytest.approx(interval(gap), abs=0.0501)
    assert int(shown[0][4]) == len(gap)


SMOLLM2 = {
    "stitched cores": "stitch", "control: at random, as many in each tensor": "stitch_random", "TIES": "ties",
    "task arithmetic": "task_arithmetic", "DARE": "dare", "the model before": "base",
    "each specialist on its own task": "specialists", "mean of the specialists, not tuned": "soup",
    "TIES, not tuned": "ties@usual", "stitched cores, not tuned": "stitch@usual",
    "stitched cores, p of 30, 50 or 100": "stitch_wide",
}  # fmt: skip


def smollm2(suite: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Mean scores of the units that are whole, by label; and those of the merge that was better where it was tuned."""
    units: dict[int, dict[str, dict[str, Any]]] = {}
    for cell in outcomes("smol"):
        if cell["experiment"] == f"s-{suite}":
            units.setdefault(cell["unit"], {})[cell["label"]] = cell
    whole = [units[u] for u in sorted(units) if len(units[u]) == max(map(len, units.values()))]

    def of(cell: dict[str, Any]) -> float:
        return float(np.mean([score(x) for x in cell["right"].values()]))

    def tuned(cell: dict[str, Any]) -> tuple[float, float]:
        return max((trial[1], -trial[2]) for trial in cell["trials"])

    peer = [of(max((unit["task_arithmetic"], unit["ties"]), key=tuned)) for unit in whole]
    return {label: np.array([of(unit[label]) for unit in whole]) for label in whole[0]}, np.array(peer)


@pytest.mark.parametrize("suite", ["real", "generated"])
def test_tables_of_smollm2(suite: str) -> None:
    """Of merges, and of what the largest updates hold; fewer than three units stand as they are, without intervals."""
    found, peer = smollm2(suite)
    rows = {row[0]: row for row in table("s.md", f"smol-s-{suite}") if len(row) > 4}
    few = len(peer) < 3
    assert len(rows) == len(found) + 1
    for text, label in SMOLLM2.items():
        if label not in found:  # the run was cut short
            assert text not in rows
            continue
        row, values = rows[text], found[label]
        assert numbers(row[-2] if few else row[-3]) == pytest.approx(values if few else [values.mean()], abs=0.0501)
        if not few and np.ptp(values - peer) > 0:
            assert numbers(row[-2]) == pytest.approx(interval(values - peer), abs=0.0501)
    units: dict[int, list[dict[str, str]]] = {}
    for cell in outcomes("smol"):
        if cell["experiment"] == f"m1-{suite}":
            units.setdefault(cell["unit"], []).append(cell["outcomes"])
    held = [unit for unit in units.values() if len(unit) == 3]
    for row in table("m1.md", f"smol-m1-{suite}") if held else ():
        means = {
            kind: np.array([np.mean([score(o[f"{kind}/{float(row[0])}"]) for o in unit]) for unit in held])
            for kind in ("top", "random", "without")
        }
        assert [float(x) for x in row[2:5]] == pytest.approx([x.mean() for x in means.values()], abs=0.0501)
        gap = means["top"] - means["random"]
        expected = [gap.mean()] if len(held) < 3 else interval(gap)
        assert numbers(row[5]) == pytest.approx(expected, abs=0.101 if len(held) < 3 else 0.0501)
