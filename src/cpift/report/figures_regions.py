"""Figures of core regions: overlaps with a movable threshold, and where in the model they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpift.checkpoint import layers
from cpift.files.layout import Kind
from cpift.method.group import Grouping, components
from cpift.report import wording
from cpift.report.facts import RunFacts
from cpift.report.html import Html, element, table
from cpift.report.parts import Figure


def overlap(groups: Grouping | None) -> list[Figure]:
    """Jaccard heatmap with the slider, and sign agreement; none before the groups are known."""
    if not groups:
        return []
    tasks, jaccard, signs = groups.tasks, groups.jaccard, groups.sign_agreement
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
    first = {
        "kind": "heat",
        "panels": [{"rows": rows}],
        "xs": tasks,
        "ys": tasks,
        "domain": [0, top or 1.0],
        "jaccard": jaccard,
        "digits": 4,
    }
    threshold = groups.threshold
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
    if not run.groups or len(run.groups.tasks) < 2:
        return None
    tasks, jaccard = run.groups.tasks, run.groups.jaccard
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
    facts = {task: stage.facts for task, stage in run.kind(Kind.REGION).items()}
    cores = {task: core for task, known in facts.items() if (core := known.get("by_parameter"))}
    if not cores:
        return []
    sizes = _sizes(run, [known.get("sizes", {}) for known in facts.values()])
    return [f for f in (shares(cores), by_layer(float(run.recipe.region.percent), cores, sizes)) if f]


def _sizes(run: RunFacts, by_region: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Elements of each parameter."""
    sizes = {name: size for sizes in by_region for name, size in sizes.items()}
    if run.fusion:  # runs of earlier versions have the sizes here only
        sizes |= {n: int(t["free"]) + int(t["core"]) for n, t in run.fusion["tensors"].items()}
    return sizes


def shares(cores: Mapping[str, Mapping[str, int]]) -> Figure:
    """Shares of the kinds of modules in each core region.

    Args:
        cores: task to the core positions of each parameter.
    """
    rows = []
    for task, core in cores.items():
        total = sum(core.values())
        for kind in layers.KINDS:
            part = sum(count for name, count in core.items() if layers.kind(name) == kind)
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
            "ys": list(cores),
            "series": kinds,
            "percent": True,
            "xLabel": "share of the core region, %",
            "small": len(cores) > 8,
        },
        headers=["task", "part", "share of the core region"],
        rows=[[r["y"], r["s"], r["v"]] for r in rows],
        note="A large embedding share means that much of the region is rows of tokens that the task uses.",
    )


def by_layer(percent: float, cores: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int]) -> Figure | None:
    """Density of core positions by layer and module.

    Args:
        percent: mean density, in per cent.
        cores: task to the core positions of each parameter.
        sizes: elements of each parameter.
    """
    if not sizes:
        return None
    mean_density = percent / 100
    inside = [n for n in sizes if layers.layer(n) is not None]
    order = sorted({layers.layer(n) or 0 for n in inside})
    modules = sorted(
        {layers.module(n) for n in inside},
        key=lambda m: (next(layers.KINDS.index(layers.kind(n)) for n in inside if layers.module(n) == m), m),
    )
    panels, table_rows, highest = [], [], 0.0
    for task, core in cores.items():
        cells = []
        for number in order:
            for module in modules:
                names = [n for n in inside if layers.layer(n) == number and layers.module(n) == module]
                size = sum(sizes[n] for n in names)
                if size:
                    density = sum(core.get(n, 0) for n in names) / size / mean_density
                    highest = max(highest, density)
                    cells.append(
                        {
                            "x": str(number),
                            "y": module,
                            "v": density,
                            "tip": f"{wording.percent(density * mean_density, 2)} core, {density:.2g} × the mean",
                        }
                    )
                    table_rows.append([task, number, module, density * mean_density])
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
        note=f"Dark blue: hardly any core positions. Yellow: {max(2.0, min(highest, 6.0)):.2g} times the mean of {wording.percent(mean_density)} or more. Across: layers, first to last.",
    )


def statistics(run: RunFacts) -> Html | None:
    """Threshold, median and zero share of each region."""
    rows, least = [], "threshold of |Δ|"
    for task, stage in run.kind(Kind.REGION).items():
        f = stage.facts
        least = "threshold of the score" if f.get("scores") == "score" else least
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
            ["task", "core positions", least, "median |Δ|", "threshold to median", "updates exactly zero"],
            rows,
        )
        if rows
        else None
    )


def overlap_sentence(run: RunFacts) -> str:
    """The largest overlap, and the groups that follow."""
    if not run.groups or len(run.groups.tasks) < 2:
        return ""
    tasks, j = run.groups.tasks, run.groups.jaccard
    pairs = sorted(((j[a][b], tasks[b], tasks[a]) for a in range(len(tasks)) for b in range(a)), reverse=True)
    value, a, b = pairs[0]
    groups = run.order
    grouped = (
        "every task is a group of its own"
        if len(groups) == len(tasks)
        else "all tasks are one group"
        if len(groups) == 1
        else f"there are {len(groups)} groups"
    )
    return (
        f"The largest overlap is {value:.3f} ({a} and {b}); at τ = {run.groups.threshold:g} {grouped}. Order of the stages: "
        + "; ".join(wording.names(g) for g in groups)
        + "."
    )
