"""Figures of a comparison: methods on every task, differences, tasks that arrive one by one."""

from __future__ import annotations

from cpift.compare.methods import Role, has_role, specialist
from cpift.metrics import common_axis, described, intervals, mean_unit
from cpift.metrics.comparison import ComparisonRecord
from cpift.metrics.metric import PER_CENT, Unit
from cpift.metrics.summary import share_of
from cpift.report import wording
from cpift.report.parts import Figure

SPECIALIST = specialist()


def unit(record: ComparisonRecord) -> Unit:
    """Of a mean over tasks: of those scored in per cent, where there are any."""
    return mean_unit(task["metric"] for task in record["tasks"].values())


def _values(record: ComparisonRecord, budget: str, method: str, task: str, share: bool) -> list[float]:
    """One value a seed: the score, or its share of the specialist's of the same seed."""
    values = []
    methods = record["budgets"][budget]
    for seed, result in methods[method].items():
        entry = result["scores"].get(task)
        if entry is None:
            continue
        value: float | None = entry["score"]
        if share:
            specialists = methods.get(SPECIALIST, {}).get(seed)
            special = specialists["scores"].get(task) if specialists else None
            value = share_of(entry["metric"], entry["score"], special["score"]) if special else None
        if value is not None:
            values.append(value)
    return values


def scores(record: ComparisonRecord, budget: str) -> Figure | None:
    """Each method's mean score on each task, and its share of the specialist's."""
    methods = list(record["budgets"][budget])
    if not methods:
        return None
    views, rows = {}, []
    for share in (False, True):
        if share and SPECIALIST not in methods:
            continue
        panels = []
        for task, about in record["tasks"].items():
            metric = described(about["metric"])
            points, raw = [], not share and metric.unit == PER_CENT
            for method in methods:
                values = _values(record, budget, method, task, share)
                if not values:
                    continue
                mean, spread = sum(values) / len(values), intervals.of_mean(values)
                point = {
                    "y": method,
                    "v": mean,
                    "c": int(method == record["reference"]),
                    "t": f"{mean:.3f}, {len(values)} seeds",
                }
                if raw:
                    point["t"] = f"{wording.score(mean, PER_CENT)}, {len(values)} seed{'s' * (len(values) != 1)}"
                drawn = spread and (max(0.0, spread[1]), min(1.0, spread[2]) if raw else spread[2])
                points.append(point | ({"lo": drawn[0], "hi": drawn[1]} if drawn else {}))
                rows.append(
                    [
                        task,
                        method,
                        "share of the specialist" if share else about["metric"],
                        mean,
                        *(spread[1:] if spread else (None, None)),
                        len(values),
                    ]
                )
            if points:
                kind = "share of the specialist" if share else metric.axis
                own = {"percent": True, "digits": 1} if raw else {}
                panels.append({"title": f"{task}: {kind}", "rows": points, "own": own})
        views["shares of the specialist" if share else "raw scores"] = {
            "panels": panels,
            **({"rule": 1.0} if share else {}),
        }
    if not any(view["panels"] for view in views.values()):
        return None
    drawing = {"kind": "dots", "views": views, "ys": methods, "least": 320, "digits": 3}
    return Figure(
        id=f"scores-{budget}",
        title="Methods on every task",
        describe="Dots: mean score of each method on each task, with 95 % intervals over seeds.",
        drawing=drawing,
        headers=["task", "method", "unit", "mean", "95 % low", "95 % high", "seeds"],
        rows=rows,
        note=f"{record['reference']} is orange and square. Bars: 95 % intervals over {len(record['seeds'])} seeds (Student's t)."
        + ("" if len(record["seeds"]) > 1 else " With one seed there is no interval."),
    )


def differences(record: ComparisonRecord, budget: str) -> Figure | None:
    """Each method minus the reference."""
    known = [d for d in record.get("differences", {}).get(budget, []) if "mean" in d]
    if not known:
        return None
    known.sort(key=lambda d: -d["mean"]["difference"])
    drawn = [d for d in known if not has_role(d["method"], Role.FLOOR)]  # far off, it would squeeze all others
    if not drawn:
        return None
    points = [
        {"y": d["method"], "v": d["mean"]["difference"], "lo": d["mean"]["low"], "hi": d["mean"]["high"], "c": 0}
        for d in drawn
    ]
    rows = [["mean", d["method"], d["mean"]["difference"], d["mean"]["low"], d["mean"]["high"]] for d in known]
    rows += [[t, d["method"], g["difference"], g["low"], g["high"]] for d in known for t, g in d["tasks"].items()]
    per_cent = unit(record) == PER_CENT
    return Figure(
        id=f"differences-{budget}",
        title=f"Each method against {record['reference']}, mean over tasks",
        describe=f"Dots: mean difference of each method to {record['reference']}, with 95 % intervals.",
        drawing={
            "kind": "dots",
            "panels": [{"rows": points}],
            "ys": [d["method"] for d in drawn],
            "rule": 0,
            "percent": per_cent,
            "digits": unit(record).digits,
            "xLabel": f"{unit(record).difference}, more is better",
        },
        headers=["task", "method", "difference", "95 % low", "95 % high"],
        rows=rows,
        note=f"Right of the line: better than {record['reference']}. Paired by seed and evaluation row. The base is in the table only.",
    )


def arrivals(record: ComparisonRecord, budget: str) -> Figure | None:
    """Scores as tasks arrive, mean over seeds, a panel a method."""
    panels, rows, order = [], [], []
    tasks = list(record["tasks"])
    for method, results in record["budgets"][budget].items():
        sums: dict[tuple[int, str, str], list[float]] = {}
        for result in results.values():
            for i, arrival in enumerate(result.get("arrivals", [])):
                for task, score in arrival["scores"].items():
                    sums.setdefault((i, arrival["task"], task), []).append(float(score))
        points = []
        for (i, arrived, task), values in sums.items():
            label = f"{i + 1}. {arrived}"
            if label not in order:
                order.append(label)
            points.append({"x": label, "y": sum(values) / len(values), "s": task})
            rows.append([method, label, task, sum(values) / len(values), len(values)])
        if points:
            panels.append({"title": method, "rows": points})
    if not panels:
        return None
    return Figure(
        id=f"arrivals-{budget}",
        title="The seesaw as tasks arrive",
        describe="Lines: score of each task after each arrival, one panel a method.",
        drawing={
            "kind": "lines",
            "panels": panels,
            "xs": order,
            "series": tasks,
            **_axis(record),
            "least": 320,
            "small": True,
        },
        headers=["method", "after", "task", "score", "seeds"],
        rows=rows,
        note="A line that falls is a task forgotten when another arrived.",
    )


def _axis(record: ComparisonRecord) -> dict[str, object]:
    metrics = [about["metric"] for about in record["tasks"].values()]
    if {described(name).unit for name in metrics} == {PER_CENT}:
        return {"yLabel": common_axis(metrics), "percent": True, "digits": PER_CENT.digits}
    return {"yLabel": common_axis(metrics), "digits": 3}


def forgetting(record: ComparisonRecord) -> Figure | None:
    """What each arrival costs the tasks that were there, and gives the one that comes."""
    known = {m: row for m, row in (record.get("forgetting") or {}).items() if row}
    panels, rows, per_cent = [], [], unit(record) == PER_CENT
    for kind, title in (("old", "older tasks, at each arrival"), ("new", "the task that arrives")):
        gaps = {m: row[kind] for m, row in known.items() if kind in row}
        points = [
            {"y": m, "v": g["difference"], "lo": g["low"], "hi": g["high"], "c": int(m == record["reference"])}
            for m, g in gaps.items()
        ]
        rows += [[title, p["y"], p["v"], p["lo"], p["hi"]] for p in points]
        panels += [{"title": title, "rows": points}] if points else []
    if not panels:
        return None
    axis = f"{unit(record).difference}, more is better"
    return Figure(
        id="forgetting",
        title="What an arrival costs the older tasks, and gives the new one",
        describe="Dots: mean change of score at an arrival, with 95 % intervals, for each method; a panel for the older tasks and one for the new.",
        drawing={
            "kind": "dots",
            "panels": panels,
            "ys": list(known),
            "rule": 0,
            "percent": per_cent,
            "digits": unit(record).digits,
            "xLabel": axis,
            "least": 320,
        },
        headers=["tasks", "method", "change", "95 % low", "95 % high"],
        rows=rows,
        note=f"Left of the line: forgotten. {record['reference']} is orange and square.",
    )
