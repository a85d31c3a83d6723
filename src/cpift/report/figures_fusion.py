"""Figures of the fusion: angles and coefficients by layer, who won where cores collided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cpift.checkpoint import layers
from cpift.files import layout
from cpift.method.interpolations import INTERPOLATIONS
from cpift.method.overlap_rules import OVERLAP_RULES
from cpift.report import wording
from cpift.report.facts import RunFacts
from cpift.report.parts import Figure

Tensors = Mapping[str, Mapping[str, Any]]


def fusion(run: RunFacts) -> list[Figure]:
    """All figures of ``fusion.json``."""
    if not run.fusion:
        return []
    return [f for f in (_angles(run.fusion, run.tasks), _coefficients(run.fusion), _collisions(run, run.fusion)) if f]


def said(run: RunFacts) -> str:
    """How much was transplanted and contested."""
    f = run.fusion
    if not f:
        return ""
    share = f["contested"] / f["core"] if f["core"] else 0.0
    return (
        f"{wording.count(f['core'])} of {wording.count(f['total'])} parameters ({wording.percent(f['core_share'])}) were transplanted from the specialists; "
        f"the rest is {_label(INTERPOLATIONS, f['options']['interpolation'])} of the {f['options']['space']}. {wording.count(f['contested'])} positions ({wording.percent(share)} "
        "of the transplanted) were claimed by more than one task."
        + (" The checkpoints were read twice, as the whole model is one vector." if f.get("reads") == 2 else "")
    )


def _label(table: Mapping[str, Any], name: str) -> str:
    """The entry's label; of one that is not registered here the name."""
    return str(table[name].label) if name in table else name


def _by_layer(tensors: Tensors) -> dict[int, list[Mapping[str, object]]]:
    found: dict[int, list[Mapping[str, object]]] = {}
    for name, entry in tensors.items():
        number = layers.layer(name)
        if number is not None and entry["free"]:
            found.setdefault(number, []).append(entry)
    return dict(sorted(found.items()))


def _mean(entries: list[Mapping[str, Any]], value: Any) -> float | None:
    """Weighted by the entries that were interpolated."""
    pairs = [(v, e["free"]) for e in entries if (v := value(e)) is not None]
    total = sum(w for _, w in pairs)
    return sum(v * w for v, w in pairs) / total if total else None


def _angles(found: Mapping[str, Any], tasks: list[str]) -> Figure | None:
    by_layer = _by_layer(found["tensors"])
    if not by_layer:
        return None
    between, updates, rows = [], [], []
    for number, entries in by_layer.items():
        for i, task in enumerate(tasks):
            angle = _mean(entries, lambda e, i=i: e["angles"][i] if i < len(e["angles"]) else None)
            apart = _mean(
                entries, lambda e, i=i: e["update_angles"][0][i + 1] if i + 1 < len(e["update_angles"]) else None
            )
            angle, apart = (None if a is None else math.degrees(a) for a in (angle, apart))
            if angle is not None:
                between.append({"x": number, "y": angle, "s": task})
            if apart is not None:
                updates.append({"x": number, "y": apart, "s": task})
            rows.append([number, task, angle, apart])
    space = found["options"]["space"]
    panels = [{"title": f"Interpolated {space}: angle at each task's step", "rows": between}] if between else []
    panels += [{"title": "Updates: backbone against each task", "rows": updates}] if updates else []
    if not panels:
        return None
    return Figure(
        id="angles",
        title="Angles by layer",
        describe="Lines: mean angle in degrees by layer, between what was interpolated, and between the updates.",
        drawing={
            "kind": "lines",
            "panels": panels,
            "series": tasks,
            "xLabel": "layer",
            "yLabel": "degrees",
            "digits": 2,
        },
        headers=["layer", "task", f"angle of {space}, degrees", "angle of updates to the backbone, degrees"],
        rows=rows,
        note="At angles near zero, spherical interpolation is plain averaging; updates at 90° have nothing in common.",
    )


def _coefficients(found: Mapping[str, Any]) -> Figure | None:
    models, rows = found["models"], []
    for number, entries in _by_layer(found["tensors"]).items():
        for i, model in enumerate(models):
            value = _mean(entries, lambda e, i=i: e["coefficients"][i])
            if value is not None:
                rows.append({"x": number, "y": value, "s": model})
    if not rows:
        return None
    return Figure(
        id="coefficients",
        title="Share of each model in the fused weights, by layer",
        describe="Lines: mean coefficient of base, backbone and each task outside the core regions, by layer.",
        drawing={
            "kind": "lines",
            "panels": [{"rows": rows}],
            "series": models,
            "xLabel": "layer",
            "yLabel": "coefficient",
            "nested": True,
            "digits": 3,
        },
        headers=["layer", "model", "coefficient"],
        rows=[[r["x"], r["s"], r["y"]] for r in rows],
        note="Equal shares lie on one another; the lines get thinner from the first to the last, so that each is seen.",
    )


def _collisions(run: RunFacts, found: Mapping[str, Any]) -> Figure | None:
    rows, table = [], []
    for task, won in found["won"].items():
        region = run.stages.get(layout.region(task))
        own = int(region.facts["count"]) if region else won
        lost = max(0, own - won)
        rows += [{"y": task, "s": "transplanted", "v": won}, {"y": task, "s": "lost to another task", "v": lost}]
        table.append([task, own, won, lost])
    if not any(r["v"] for r in rows):
        return None
    return Figure(
        id="collisions",
        title="Core positions: transplanted, or lost where cores collided",
        describe="Bars: core positions of each task that were transplanted, and those that another task won.",
        drawing={
            "kind": "bars",
            "panels": [{"rows": rows}],
            "ys": list(found["won"]),
            "series": ["transplanted", "lost to another task"],
            "ticks": "si",
            "xLabel": "core positions",
            "digits": 0,
        },
        headers=["task", "core positions", "transplanted", "lost to another task"],
        rows=table,
        note=f"Where two cores collide, {_label(OVERLAP_RULES, found['options']['overlap'])}.",
    )
