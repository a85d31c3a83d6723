"""The page of a comparison: methods × tasks over seeds, and what beats what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpift import intervals
from cpift.report import words
from cpift.report.parts import Figure, Html, Parts, Section, e, heading, paragraph, table
from cpift.report.provenance import flat, shown, without_path
from cpift.scores import share_of
from cpift.terminal import duration

KEYS = ("state", "recipe", "tasks", "seeds", "reference", "budgets", "summary", "differences")
SPECIALIST = "single_task"
_BUDGETS = {"equal_tokens": "equal tokens", "paper": "the paper's settings", "incremental": "tasks arriving one by one"}
Found = Mapping[str, Any]


def comparison_parts(found: Found, name: str) -> Parts:
    """All parts of the page of ``comparison.json``."""
    sections = []
    for budget in found["budgets"]:
        title = _BUDGETS.get(budget, budget)
        content: list[Html | Figure | None] = [
            _scores(found, budget),
            _differences(found, budget),
            _arrivals(found, budget),
            _cost(found, budget),
        ]
        kept = [part for part in content if part]
        if kept:
            sections.append(Section(f"{budget}-part", f"Comparison: {title}", kept))
    recipe = [[key, shown(key, value)] for key, value in flat(found["recipe"])]
    sections.append(
        Section("provenance-part", "Provenance", [heading("Recipe"), table(["key", "value"], recipe, text=(1,))])
    )
    running = found["state"] != "done"
    state = f'<span class="state {"running" if running else "finished"}">{"running" if running else "finished"}</span>'
    model = without_path(str(found["recipe"].get("model", "")))
    kicker = Html(
        f"cpift compare {e(name)} · base {e(model)} · {len(found['tasks'])} tasks · seeds {e(', '.join(map(str, found['seeds'])))} {state}"
    )
    top = [part for part in (_missing(found), _board(found)) if part]
    return Parts(f"{name}: cpift comparison", kicker, headline(found), top, (), sections)


def headline(found: Found) -> str:
    """One sentence: the reference against the best baseline, in the first budget that has both."""
    reference = found["reference"]
    for budget, title in ((b, _BUDGETS.get(b, b)) for b in found["budgets"]):
        best, difference = _best(found, budget)
        if not difference or "mean" not in difference:
            continue
        gap = difference["mean"]  # the other minus the reference
        value, low, high = -gap["difference"], -gap["high"], -gap["low"]
        numbers = f"{words.gap(value, _unit(found))}, 95 % {words.interval(low, high, _unit(found))}"
        verdict = (
            f"beats {best}, the best baseline"
            if low > 0
            else f"loses to {best}, the best baseline"
            if high < 0
            else f"shows no difference beyond noise from {best}, the best baseline"
        )
        tasks = difference.get("tasks", {})
        won = [t for t, d in tasks.items() if d["high"] < 0]
        lost = [t for t, d in tasks.items() if d["low"] > 0]
        said = (f"; ahead on {words.names(won)}" if won else "") + (f"; behind on {words.names(lost)}" if lost else "")
        seeds = difference.get("seeds", len(found["seeds"]))
        return f"At {title}, {reference} {verdict} ({numbers}, {seeds} seed{'s' * (seeds != 1)}){said}."
    return f"Nothing can be said yet: {reference} or its baselines have no scores."


def _unit(found: Found) -> str:
    return "exact_match" if any(t["metric"] != "loss" for t in found["tasks"].values()) else "loss"


def _best(found: Found, budget: str) -> tuple[str, Found | None]:
    """The best method that is no form of the reference, neither the base nor the specialists; and its difference."""
    summary = found.get("summary", {}).get(budget, {})
    family = found["reference"].split(":")[0]
    others = {
        m: s["mean"]["mean"]
        for m, s in summary.items()
        if not m.startswith(family) and m not in ("base", SPECIALIST) and s["mean"]["mean"] is not None
    }
    if not others:
        return "", None
    best = max(others, key=lambda m: others[m])
    return best, next((d for d in found["differences"].get(budget, []) if d["method"] == best), None)


def _missing(found: Found) -> Html | None:
    if found["state"] == "done":
        return None
    told = [
        f"{_BUDGETS.get(b, b)}: {len(rs)} of {len(found['seeds'])} seeds of {m}"
        for b, methods in found["budgets"].items()
        for m, rs in methods.items()
        if len(rs) < len(found["seeds"])
    ]
    return paragraph(
        "Still going on. "
        + ("Incomplete so far: " + "; ".join(told) + "." if told else "Some methods have not begun."),
        "soft",
    )


def _board(found: Found) -> Html | None:
    """Methods × tasks of the first budget, best first."""
    budget = next(iter(found["budgets"]), None)
    if budget is None:
        return None
    summary, tasks = found["summary"].get(budget, {}), list(found["tasks"])
    gaps = {d["method"]: d for d in found["differences"].get(budget, [])}
    rows = []
    for method, row in sorted(
        summary.items(), key=lambda p: -(p[1]["mean"]["mean"] if p[1]["mean"]["mean"] is not None else -1e9)
    ):
        name = Html(f"<strong>{e(method)}</strong>") if method == found["reference"] else method
        cells = (
            [_cell(row["tasks"].get(t, {}).get("mean"), found["tasks"][t]["metric"]) for t in tasks]
            if len(tasks) <= 8
            else []
        )
        rows.append(
            [
                name,
                _cell(row["mean"]["mean"], _unit(found)),
                *cells,
                _against(gaps.get(method), _unit(found)),
                row.get("worst_task"),
            ]
        )
    headers = ["method", "mean", *(tasks if len(tasks) <= 8 else []), f"against {found['reference']}", "worst task"]
    return table(headers, rows, kind="cards") if rows else None


def _cell(value: float | None, metric: str) -> str | None:
    return None if value is None else words.score(abs(value), metric)


def _against(difference: Found | None, metric: str) -> Html | None:
    if not difference or "mean" not in difference:
        return None
    g = difference["mean"]
    word, kind = (
        ("▲ better", "won") if g["low"] > 0 else ("▼ worse", "lost") if g["high"] < 0 else ("≈ within noise", "soft")
    )
    return Html(
        f'<span class="{kind}">{word}</span><br>{e(words.gap(g["difference"], metric))} ({e(words.interval(g["low"], g["high"], metric))})'
    )


def _values(found: Found, budget: str, method: str, task: str, share: bool) -> list[float]:
    """One value a seed: the score, or its share of the specialist's of the same seed."""
    values = []
    methods = found["budgets"][budget]
    for seed, result in methods[method].items():
        entry = result["scores"].get(task)
        special = methods.get(SPECIALIST, {}).get(seed, {}).get("scores", {}).get(task)
        if entry is None or (share and special is None):
            continue
        value = share_of(entry["metric"], entry["score"], special["score"]) if share else float(entry["score"])
        if value is not None:
            values.append(value)
    return values


def _scores(found: Found, budget: str) -> Figure | None:
    methods = list(found["budgets"][budget])
    if not methods:
        return None
    views, rows = {}, []
    for share in (False, True):
        if share and SPECIALIST not in methods:
            continue
        panels = []
        for task, about in found["tasks"].items():
            points = []
            for method in methods:
                values = _values(found, budget, method, task, share)
                if not values:
                    continue
                mean, spread = sum(values) / len(values), intervals.of_mean(values)
                point = {
                    "y": method,
                    "v": mean,
                    "c": int(method == found["reference"]),
                    "t": f"{mean:.3f}, {len(values)} seeds",
                }
                points.append(point | ({"lo": spread[1], "hi": spread[2]} if spread else {}))
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
                unit = (
                    "share of the specialist"
                    if share
                    else "loss, nats (less is better)"
                    if about["metric"] == "loss"
                    else "right (0 to 1)"
                )
                panels.append({"title": f"{task}: {unit}", "rows": points})
        views["shares of the specialist" if share else "raw scores"] = {
            "panels": panels,
            **({"rule": 1.0} if share else {}),
        }
    if not any(view["panels"] for view in views.values()):
        return None
    drawing = {"kind": "dots", "views": views, "ys": methods, "least": 320, "digits": 3}
    return Figure(
        f"scores-{budget}", "Methods on every task", "Dots: mean score of each method on each task, with 95 % intervals over seeds.", drawing,
        ["task", "method", "unit", "mean", "95 % low", "95 % high", "seeds"], rows,
        f"{found['reference']} is orange and square. Bars: 95 % intervals over {len(found['seeds'])} seeds (Student's t)." + ("" if len(found["seeds"]) > 1 else " With one seed there is no interval."),
    )  # fmt: skip


def _differences(found: Found, budget: str) -> Figure | None:
    known = [d for d in found.get("differences", {}).get(budget, []) if "mean" in d]
    if not known:
        return None
    known.sort(key=lambda d: -d["mean"]["difference"])
    drawn = [d for d in known if d["method"] != "base"]  # far off, it would squeeze all others
    if not drawn:
        return None
    points = [
        {"y": d["method"], "v": d["mean"]["difference"], "lo": d["mean"]["low"], "hi": d["mean"]["high"], "c": 0}
        for d in drawn
    ]
    rows = [["mean", d["method"], d["mean"]["difference"], d["mean"]["low"], d["mean"]["high"]] for d in known]
    rows += [[t, d["method"], g["difference"], g["low"], g["high"]] for d in known for t, g in d["tasks"].items()]
    loss = _unit(found) == "loss"
    return Figure(
        f"differences-{budget}", f"Each method against {found['reference']}, mean over tasks", f"Dots: mean difference of each method to {found['reference']}, with 95 % intervals.",
        {"kind": "dots", "panels": [{"rows": points}], "ys": [d["method"] for d in drawn], "rule": 0, "percent": not loss, "digits": 1 if not loss else 3, "xLabel": "nats, more is better" if loss else "points, more is better"},
        ["task", "method", "difference", "95 % low", "95 % high"], rows, f"Right of the line: better than {found['reference']}. Paired by seed and evaluation row. The base is in the table only.",
    )  # fmt: skip


def _arrivals(found: Found, budget: str) -> Figure | None:
    """Scores as tasks arrive, mean over seeds, a panel a method."""
    panels, rows, order = [], [], []
    tasks = list(found["tasks"])
    for method, results in found["budgets"][budget].items():
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
        f"arrivals-{budget}", "The seesaw as tasks arrive", "Lines: score of each task after each arrival, one panel a method.",
        {"kind": "lines", "panels": panels, "xs": order, "series": tasks, "yLabel": "score", "digits": 3, "least": 320, "small": True}, ["method", "after", "task", "score", "seeds"], rows,
        "A line that falls is a task forgotten when another arrived.",
    )  # fmt: skip


def _cost(found: Found, budget: str) -> Html | None:
    summary = found["summary"].get(budget, {})
    rows = [[m, round(s["tokens"]), duration(s["seconds"]), s.get("seesaw")] for m, s in summary.items()]
    return (
        Html(heading("Cost") + table(["method", "tokens trained", "time", "tasks behind the specialist"], rows))
        if rows
        else None
    )
