"""Figures of the training and of what it cost."""

from __future__ import annotations

from cpift.console.terminal import duration, size
from cpift.files.layout import Kind, kind_of
from cpift.files.records import PlanRecord
from cpift.report.facts import RunFacts, StageFacts
from cpift.report.html import Html, table
from cpift.report.parts import Figure

_TRAINED = {Kind.PROBE: "probes", Kind.BACKBONE: "backbone", Kind.REFINE: "refine"}
_KINDS = {
    Kind.BASE: "base and rows",
    Kind.ROWS: "base and rows",
    Kind.PROBE: "probe",
    Kind.REGION: "identify",
    Kind.GROUP: "group",
    Kind.BACKBONE: "backbone",
    Kind.FUSE: "fuse",
    Kind.REFINE: "refine",
    Kind.PROTECT: "identify",
    Kind.ARRIVAL: "additions",
    Kind.SCORE: "evaluate",
    Kind.GUARD: "evaluate",
}


def training(run: RunFacts) -> Figure | None:
    """Loss and learning rate of every training: probes side by side, backbone and refine one stage after the other."""
    loss, rate, rows, names = [], [], [], []
    for kind, title in _TRAINED.items():
        curves, rates, done = [], [], 0
        for name, stage in run.kind(kind).items():
            entries = stage.facts.get("losses") or []
            label = name if kind is Kind.PROBE else f"stage {name}"
            for step, value, lr in entries:
                curves.append({"x": done + step, "y": value, "s": label})
                rates.append({"x": done + step, "y": lr, "s": label})
                rows.append([f"{title} {name}", step, value, lr])
            if label not in names:
                names.append(label)
            done += stage.facts.get("steps", 0) if kind is not Kind.PROBE else 0
        if curves:
            loss.append({"title": title, "rows": curves})
            rate.append({"title": title, "rows": rates})
    if not loss:
        return None
    views = {
        "loss": {"panels": loss, "yLabel": "loss, nats"},
        "learning rate": {"panels": rate, "yLabel": "learning rate", "ticks": "si", "digits": 8},
    }
    return Figure(
        id="training",
        title="Loss of every training",
        describe="Lines: training loss, or learning rate, by optimizer step, for probes, backbone and refine.",
        drawing={"kind": "lines", "views": views, "series": names, "xLabel": "step", "digits": 3},
        headers=["training", "step", "loss, nats", "learning rate"],
        rows=rows,
        note="Backbone and refine stages follow one another; every stage starts a new schedule.",
    )


def trainings(run: RunFacts) -> Html | None:
    """One line a training: steps, tokens, speed, first and last loss."""
    rows = []
    for kind, title in _TRAINED.items():
        for name, stage in run.kind(kind).items():
            f = stage.facts
            losses = f.get("losses") or []
            speed = f["tokens"] / f["train_seconds"] if f.get("train_seconds") and f.get("tokens") else None
            ends = f"{losses[0][1]:.3f} → {losses[-1][1]:.3f}" if losses else None
            rows.append(
                [
                    f"{title} {name}" + (f" ({f['adapter']})" if f.get("adapter") else ""),
                    f.get("steps"),
                    f.get("tokens"),
                    f.get("rows"),
                    f.get("frozen"),
                    None if speed is None else f"{speed:,.0f}",
                    ends,
                ]
            )
    return (
        table(["training", "steps", "tokens", "rows", "frozen elements", "tokens/s", "loss, first → last"], rows)
        if rows
        else None
    )


def cost(run: RunFacts) -> Figure | None:
    """Time, tokens, memory and disk of each kind of stage, beside the plan."""
    kinds: dict[str, list[StageFacts]] = {}
    for name, stage in run.stages.items():
        kind = kind_of(name)
        kinds.setdefault(_KINDS[kind] if kind else "other", []).append(stage)
    if not kinds:
        return None
    order = [k for k in dict.fromkeys([*_KINDS.values(), "other"]) if k in kinds]
    planned = _planned(run.plan) if run.plan else {}
    on_device = any(s.facts.get("peak_device_memory") is not None for s in run.stages.values())
    units = {"time": "minutes", "tokens trained": "tokens", "peak memory": "GB", "disk": "GB"}
    units |= {"peak device memory": "GB"} if on_device else {}
    bars: list[list[dict[str, object]]] = [[] for _ in units]
    marks: list[list[dict[str, object]]] = [[] for _ in units]
    rows: list[list[object]] = []
    for label in order:
        facts = [s.facts for s in kinds[label]]
        seconds = sum(f.get("seconds", 0.0) for f in facts)
        tokens = sum(f.get("tokens", 0) for f in facts) or None
        peak = max((f.get("peak_memory", 0) for f in facts), default=0)
        disks = [s.disk for s in kinds[label]]
        disk = None if any(d is None for d in disks) else sum(d or 0 for d in disks)
        plan = planned.get(label, {})
        cells: list[str | None] = [
            duration(seconds),
            f"{tokens:,}" if tokens else None,
            size(peak),
            None if disk is None else size(disk),
        ]
        values: tuple[float | None, ...] = (seconds / 60, tokens, peak / 1e9, None if disk is None else disk / 1e9)
        predicted = [plan["seconds"] / 60 if plan.get("seconds") else None, plan.get("tokens"), *[None] * 3]
        if on_device:
            device = max((f.get("peak_device_memory") or 0 for f in facts), default=0)
            cells, values = [*cells, size(device)], (*values, device / 1e9)
        for drawn, marked, cell, value, mark in zip(bars, marks, cells, values, predicted, strict=False):
            if value:
                drawn.append({"y": label, "s": "", "v": value, "t": cell})
            if mark:
                marked.append({"y": label, "v": mark})
        planned_time = duration(plan["seconds"]) if plan.get("seconds") else None
        row: list[object] = [label, len(facts), *cells[:1], tokens, *cells[2:]]
        rows.append([*row, planned_time, plan.get("tokens")] if planned else row)
    panels = [
        {"title": title, "rows": drawn, "planned": marked, "own": {"xLabel": unit}}
        for (title, unit), drawn, marked in zip(units.items(), bars, marks, strict=True)
        if drawn
    ]
    headers = ["stage", "folders", *units]
    note = "This folder holds no plan; cpift plan RECIPE --measure --out DIR writes one to set beside it."
    if planned:
        headers += ["time planned", "tokens planned"]
        timed = any(plan.get("seconds") for plan in planned.values())
        note = "Marks across: what cpift plan predicted."
        note += "" if timed else " It was not measured, so it predicted no time."
        if run.plan:
            note += f" It predicted {size(run.plan['memory'])} of memory at most, and {size(run.plan['disk'])} of disk in all."
    return Figure(
        id="cost",
        title="What it cost, stage by stage",
        describe="Bars: time, tokens trained, peak memory and disk of each kind of stage, a panel each.",
        drawing={
            "kind": "bars",
            "panels": panels,
            "ys": order,
            "series": [""],
            "least": 480,
            "ticks": "si",
            "digits": 1,
        },
        headers=headers,
        rows=rows,
        note=note,
    )


def _planned(plan: PlanRecord) -> dict[str, dict[str, float]]:
    """Tokens and seconds that were predicted, by kind of stage."""
    kinds: dict[str, dict[str, float]] = {}
    for part in plan["stages"]:
        kind = kinds.setdefault(part["stage"].split(" ")[0], {})
        for key, value in (("tokens", part.get("tokens")), ("seconds", part.get("seconds"))):
            if value is not None:
                kind[key] = kind.get(key, 0) + value
    if plan.get("evaluate_seconds"):
        kinds["evaluate"] = {"seconds": plan["evaluate_seconds"]}
    return kinds
