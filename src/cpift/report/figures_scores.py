"""Figures of scores: the seesaw, and what was forgotten."""

from __future__ import annotations

from cpift.files import layout
from cpift.metrics import common_axis, described, intervals
from cpift.metrics.metric import PER_CENT, Unit
from cpift.report import wording
from cpift.report.facts import RunFacts
from cpift.report.parts import Figure
from cpift.report.verdicts import path

SMALL_FROM = 6  # number of tasks from which each has a panel of its own
INTERVALS_UP_TO = 3  # tasks in one panel
Point = dict[str, object]
"""A point of a drawing: x, y, series, ends of its interval."""
_STEPS = {"base": "base", "backbone": "backbone", "fused": "fused"}


def seesaw(run: RunFacts) -> list[Figure]:
    """Each task's score through the stages; one figure for each unit, per cent first."""
    units = dict.fromkeys([PER_CENT, *(run.metric(task).unit for task in run.tasks)])
    return [f for unit in units if (f := _seesaw(run, unit)) is not None]


def step(model: str) -> str:
    """A model as a place on the way that all tasks share: each task's own probe is "specialist"."""
    return "specialist" if model.startswith("probe/") else wording.model(model)


def _seesaw(run: RunFacts, unit: Unit) -> Figure | None:
    tasks, share = [t for t in run.tasks if run.metric(t).unit == unit and path(run, t)], unit == PER_CENT
    if not tasks:
        return None
    table: list[list[object]] = []
    by_task: dict[str, list[Point]] = {}
    for task in tasks:
        points: list[Point] = []
        for model in path(run, task):
            entry = run.models[model][task]
            band = intervals.of_score(entry)
            points.append(
                {"x": step(model), "y": entry["score"], "s": task} | ({"lo": band[0], "hi": band[1]} if band else {})
            )
            table.append([task, step(model), entry["score"], *(band or (None, None))])
        by_task[task] = points
    order = [step(m) for m in path(run, max(tasks, key=lambda t: len(path(run, t))))]
    small = len(tasks) >= SMALL_FROM
    panels: list[dict[str, object]] = []
    if small:  # a panel a task, with its specialist as a line across
        for t, points in by_task.items():
            reference = next((p["y"] for p in points if p["x"] == "specialist"), None)
            panels.append({"title": t, "rows": [{**p, "s": ""} for p in points], "reference": reference})
    else:
        panels.append({"rows": _apart([p for points in by_task.values() for p in points], tasks)})
    drawing = {
        "kind": "lines",
        "panels": panels,
        "xs": order,
        "series": [""] if small else tasks,
        "percent": share,
        "small": small,
        "free": not share,
        "yLabel": common_axis(run.metric(t).name for t in tasks),
        "least": 230,
    }
    shown = "per cent" if share else f"{unit.name}, lower is better"
    note = "Vertical bars are 95 % intervals over the evaluation rows." + (
        " Dashed: the task's own specialist." if small else ""
    )
    return Figure(
        id="seesaw" if share else "seesaw-loss",
        title="Each task through the stages" + ("" if share else ", by loss"),
        describe=f"Lines: score of each task ({shown}) at {wording.names(order, 12)}.",
        drawing=drawing,
        headers=["task", "model", "score (0 to 1)" if share else "loss, nats", "95 % low", "95 % high"],
        rows=table,
        note=note,
    )


def _apart(points: list[Point], tasks: list[str]) -> list[Point]:
    """The points; without intervals where they would cover each other."""
    if len(tasks) <= INTERVALS_UP_TO:
        return points
    return [{key: value for key, value in point.items() if key not in ("lo", "hi")} for point in points]


def forgetting(run: RunFacts) -> Figure | None:
    """Task × model: the score, coloured by its distance from the task's specialist."""
    models = list(run.models)
    if not models:
        return None
    rows, table = [], []
    for task in run.tasks:
        special = run.models.get(layout.probe_model(task), {}).get(task)
        for model in models:
            entry = run.models[model].get(task)
            if entry is None:
                continue
            away, metric = None, described(entry["metric"])
            if special and special["score"]:
                away = metric.gain(entry["score"], special["score"]) / special["score"]
            unit = metric.unit
            text = f"{unit.scale * entry['score']:.{max(0, unit.digits - 1)}f}"
            tip = wording.score(entry["score"], unit) + (
                f", {wording.signed(100 * away, 0)} % of the specialist" if away is not None else ""
            )
            shown = None if away is None else max(-1.0, min(1.0, away))
            rows.append(
                {
                    "x": wording.model(model),
                    "y": task,
                    "v": shown,
                    "t": text,
                    "tip": tip,
                    "mark": model == layout.probe_model(task),
                }
            )
            table.append([task, wording.model(model), entry["score"], away])
    drawing = {
        "kind": "heat",
        "panels": [{"rows": rows}],
        "xs": [wording.model(m) for m in models],
        "ys": run.tasks,
        "domain": [-1, 0, 1],
        "diverging": True,
    }
    return Figure(
        id="forgetting",
        title="Every model on every task",
        describe="Heatmap: score of each model on each task, coloured by how far it is below or above the task's own specialist.",
        drawing=drawing,
        headers=["task", "model", "score", "distance from the specialist, share"],
        rows=table,
        note="Number: score (% right, or loss). Orange: below the task's own specialist (framed), purple: above.",
    )
