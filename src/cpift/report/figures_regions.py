"""Figures of core regions: overlaps with a movable threshold, and where in the model they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpift.checkpoint import layers
from cpift.files.layout import Kind
from cpift.method.group import components
from cpift.report import wording
from cpift.report.facts import RunFacts
from cpift.report.html import Html, element, table
from cpift.report.parts import Figure


def overlap(groups: Mapping[str, Any] | None) -> list[Figure]:
    """Jaccard heatmap with the slider, and sign agreement; ``groups`` as ``groups.json`` has them."""
    if not groups:
        return []
    tasks, jaccard, signs = groups["tasks"], groups["jaccard"], groups["sign_agreement"]
    pairs = [(i, j) for i in range(len(tasks)) for j in range(len(tasks))]
    top = max((jaccard[i][j] for i, j in pairs if i != j), default=0.0)
    # The diagonal is 1 by definition and would hide all else, so it is left empty.
    rows = [
        {
            "x": tasks[j],
            "y": tasks[i],
            "v": None if i == j else jaccard[i][j],
            "t": "" if i == j else f"{jaccard[i][j]:.3f}",
        }
        for i, j in pairs
    ]
    first: dict[str, Any] = {
        "kind": "heat",
        "panels": [{"rows": rows}],
        "xs": tasks,
        "ys": tasks,
        "domain": [0, top or 1.0],
        "jaccard": jaccard,
        "digits": 4,
    }
    threshold = float(groups["threshold"])
    limit = min(1.0, max(1.25 * top, 1.25 * threshold, 1e-4))
    control = element("threshold_slider", threshold, limit)
    listed = [[tasks[i], tasks[j], jaccard[i][j], signs[i][j]] for i, j in pairs if i < j]
    headers = ["task", "other task", "Jaccard overlap", "share of equal signs"]
    figures = [
        Figure(
            id="overlap",
            title="Overlap of the core regions",
            describe="Heatmap: Jaccard overlap of the core regions of each two tasks. Framed pairs are at or above the threshold.",
            drawing=first,
            headers=headers,
            rows=listed,
            note=f"Grouped here at τ = {threshold:g}. Move τ to see what groups another would give; framed pairs are joined.",
            before=control,
        )
    ]
    known = [r for row in signs for r in row if r is not None]
    if known:
        cells = [
            {
                "x": tasks[j],
                "y": tasks[i],
                "v": None if i == j or signs[i][j] is None else signs[i][j],
                "t": "" if i == j else _percent(signs[i][j]),
            }
            for i, j in pairs
        ]
        figures.append(
            Figure(
                id="signs",
                title="Where they overlap: do the updates agree in sign?",
                describe="Heatmap: share of the common core positions at which both updates have the same sign; a half is chance.",
                drawing={
                    "kind": "heat",
                    "panels": [{"rows": cells}],
                    "xs": tasks,
                    "ys": tasks,
                    "domain": [0, 0.5, 1],
                    "diverging": True,
                    "percent": True,
                },
                headers=headers,
                rows=listed,
                note="Below 50 % (orange) the two tasks pull the shared parameters apart; near 100 % (purple) they pull together.",
            )
        )
    return figures


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def merges(run: RunFacts) -> Html | None:
    """At which τ groups join, as a table: the slider without a script."""
    if not run.groups or len(run.groups["tasks"]) < 2:
        return None
    tasks, jaccard = run.groups["tasks"], run.groups["jaccard"]
    values = sorted({jaccard[i][j] for i in range(len(tasks)) for j in range(i)}, reverse=True)
    rows, before = [["above " + (f"{values[0]:.4f}" if values else "0"), len(tasks), "each task alone"]], len(tasks)
    for value in values:
        groups = components(tasks, jaccard, value)
        if len(groups) < before:
            before = len(groups)
            rows.append([f"{value:.4f}", before, " | ".join(", ".join(g) for g in groups)])
    return table(["τ at most", "groups", "which"], rows, text=(2,))


def regions(run: RunFacts) -> list[Figure]:
    """Layer × module per task, and the shares of the kinds of modules."""
    found = {task: s.facts for task, s in run.kind(Kind.REGION).items() if s.facts.get("by_parameter")}
    if not found:
        return []
    sizes = _sizes(run, found)
    return [f for f in (shares(found), by_layer(float(run.recipe["region"]["percent"]), found, sizes)) if f]


def _sizes(run: RunFacts, found: dict[str, dict[str, Any]]) -> dict[str, int]:
    sizes = {n: int(s) for facts in found.values() for n, s in facts.get("sizes", {}).items()}
    if run.fusion:  # runs of earlier versions have the sizes here only
        sizes |= {n: int(t["free"]) + int(t["core"]) for n, t in run.fusion["tensors"].items()}
    return sizes


def shares(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Kinds of modules; ``found`` has for each task ``by_parameter``, the core positions by parameter."""
    rows = []
    for task, facts in found.items():
        total = sum(facts["by_parameter"].values())
        for kind in layers.KINDS:
            part = sum(c for n, c in facts["by_parameter"].items() if layers.kind(n) == kind)
            if part or kind != layers.OTHER:
                rows.append({"y": task, "s": kind, "v": part / total if total else 0.0})
    kinds = [k for k in layers.KINDS if any(r["s"] == k for r in rows)]
    return Figure(
        id="shares",
        title="Which parts of the model each core region is made of",
        describe="Bars: share of embedding, attention, MLP and norm parameters in each core region.",
        drawing={
            "kind": "bars",
            "panels": [{"rows": rows}],
            "ys": list(found),
            "series": kinds,
            "percent": True,
            "xLabel": "share of the core region, %",
            "small": len(found) > 8,
        },
        headers=["task", "part", "share of the core region"],
        rows=[[r["y"], r["s"], r["v"]] for r in rows],
        note="A large embedding share means that much of the region is rows of the task's own words.",
    )


def by_layer(per_cent: float, found: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> Figure | None:
    """Layer × module; ``sizes`` are the elements by parameter, ``per_cent`` is the mean density."""
    if not sizes:
        return None
    percent = per_cent / 100
    inside = [n for n in sizes if layers.layer(n) is not None]
    order = sorted({layers.layer(n) or 0 for n in inside})
    modules = sorted(
        {layers.module(n) for n in inside},
        key=lambda m: (next(layers.KINDS.index(layers.kind(n)) for n in inside if layers.module(n) == m), m),
    )
    panels, table_rows, highest = [], [], 0.0
    for task, facts in found.items():
        cells = []
        for number in order:
            for module in modules:
                names = [n for n in inside if layers.layer(n) == number and layers.module(n) == module]
                size = sum(sizes[n] for n in names)
                if size:
                    density = sum(facts["by_parameter"].get(n, 0) for n in names) / size / percent
                    highest = max(highest, density)
                    cells.append(
                        {
                            "x": str(number),
                            "y": module,
                            "v": density,
                            "tip": f"{wording.percent(density * percent, 2)} core, {density:.2g} × the mean",
                        }
                    )
                    table_rows.append([task, number, module, density * percent])
        panels.append({"title": task, "rows": cells})
    if not order:
        return None
    return Figure(
        id="layers",
        title="Where the core regions lie: layer by layer",
        describe="Heatmaps: density of core positions in each module of each layer, one panel a task.",
        drawing={
            "kind": "heat",
            "panels": panels,
            "xs": [str(n) for n in order],
            "ys": modules,
            "domain": [0, max(2.0, min(highest, 6.0))],
            "bare": True,
            "small": True,
            "least": 330,
        },
        headers=["task", "layer", "module", "share of the module that is core"],
        rows=table_rows,
        note=f"Dark blue: hardly any core positions. Yellow: {max(2.0, min(highest, 6.0)):.2g} times the mean of {wording.percent(percent)} or more. Across: layers, first to last.",
    )


def statistics(run: RunFacts) -> Html | None:
    """Threshold, median and zero share of each region."""
    rows = []
    for task, stage in run.kind(Kind.REGION).items():
        f = stage.facts
        ratio = f["threshold"] / f["median"] if f.get("threshold") and f.get("median") else None
        zero = f.get("zero_share")
        rows.append(
            [
                task,
                f.get("count"),
                f.get("threshold"),
                f.get("median"),
                None if ratio is None else f"{ratio:.1f} ×",
                None if zero is None else wording.percent(zero, 2),
            ]
        )
    return (
        table(
            ["task", "core positions", "threshold of |Δ|", "median |Δ|", "threshold to median", "updates exactly zero"],
            rows,
        )
        if rows
        else None
    )


def warned_by_overlap(run: RunFacts) -> str:
    """The overlaps in words."""
    if not run.groups or len(run.groups["tasks"]) < 2:
        return ""
    tasks, j = run.groups["tasks"], run.groups["jaccard"]
    pairs = sorted(((j[a][b], tasks[b], tasks[a]) for a in range(len(tasks)) for b in range(a)), reverse=True)
    value, a, b = pairs[0]
    groups = run.order
    made = (
        "every task is a group of its own"
        if len(groups) == len(tasks)
        else "all tasks are one group"
        if len(groups) == 1
        else f"there are {len(groups)} groups"
    )
    return (
        f"The largest overlap is {value:.3f} ({a} and {b}); at τ = {run.groups['threshold']:g} {made}. Order of the stages: "
        + "; ".join(wording.names(g) for g in groups)
        + "."
    )
