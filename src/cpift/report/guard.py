"""What the guard set says, for people: general ability before and after, and how far predictions have drifted."""

from __future__ import annotations

from collections.abc import Sequence

from cpift.files import layout
from cpift.metrics import described, intervals
from cpift.metrics.change import Change
from cpift.metrics.guard import Drift, guard_changes
from cpift.metrics.metric import PER_CENT
from cpift.report import wording
from cpift.report.facts import RunFacts
from cpift.report.html import Html, paragraph, table
from cpift.report.parts import Figure

HEADERS = ["guard set", "before", "after", "difference", "95 % interval", "verdict", "rows"]


def change_line(change: Change) -> str:
    """One task or set before and after, in words."""
    unit = change.unit
    scores = f"{wording.score(change.before, unit)} → {wording.score(change.after, unit)}"
    return f"{change.task}: {change.verdict} ({scores}; {_size(change)}; {change.rows} rows)"


def _size(change: Change) -> str:
    size = wording.gap(change.difference, change.unit)
    if change.low is None or change.high is None:
        return size
    return f"{size}, 95 % {wording.interval(change.low, change.high, change.unit)}"


def short(change: Change) -> str:
    """One task or set in a sentence."""
    return f"{change.task}: {change.verdict} ({wording.gap(change.difference, change.unit)})"


def drift_line(drift: Drift) -> str:
    """The drift in words."""
    return f"drift: {drift['kl']:.3f} nats a token (95 % {drift['low']:.3f} … {drift['high']:.3f})"


def changes_table(changes: Sequence[Change]) -> Html:
    """Before and after, a line a set."""
    rows = []
    for change in changes:
        unit, interval = change.unit, "–"
        if change.low is not None and change.high is not None:
            interval = wording.interval(change.low, change.high, unit)
        before, after = wording.score(change.before, unit), wording.score(change.after, unit)
        gap = wording.gap(change.difference, unit)
        rows.append([change.task, before, after, gap, interval, change.verdict, change.rows])
    return table(HEADERS, rows, text=(5,))


def guard_parts(run: RunFacts) -> list[Html | Figure]:
    """The section of a run: the last model against the base, then every model."""
    found: list[Html | Figure] = []
    if run.final is not None and {layout.BASE_MODEL, run.final} <= set(run.guard):
        base, last = run.guard[layout.BASE_MODEL], run.guard[run.final]
        found.append(changes_table(guard_changes(base["scores"], last["scores"])))
        if "drift" in last:
            found.append(paragraph(f"From the base to the last model, {drift_line(last['drift'])}."))
    found += [figure for figure in [_figure(run)] if figure]
    return found


def guard_sentence(run: RunFacts) -> str:
    """The last model against the base, for the first screen; "" where nothing is known."""
    if run.final is None or not {layout.BASE_MODEL, run.final} <= set(run.guard):
        return ""
    base, last = run.guard[layout.BASE_MODEL], run.guard[run.final]
    said = [short(change) for change in guard_changes(base["scores"], last["scores"])]
    said += [drift_line(last["drift"])] if "drift" in last else []
    return f"General ability, against the base: {'; '.join(said)}." if said else ""


def _figure(run: RunFacts) -> Figure | None:
    """Every model on every set, and its drift; a view each."""
    sets = list(dict.fromkeys(name for entry in run.guard.values() for name in entry["scores"]))
    if not sets:
        return None
    views: dict[str, object] = {}
    table_rows: list[list[object]] = []
    for name in sets:
        rows: list[dict[str, object]] = []
        scores = {model: entry["scores"][name] for model, entry in run.guard.items() if name in entry["scores"]}
        metric = described(next(iter(scores.values()))["metric"])
        for model, score in scores.items():
            band = intervals.of_score(score)
            point = _point(run, model, score["score"], wording.score(score["score"], metric.unit))
            rows.append(point | ({"lo": band[0], "hi": band[1]} if band else {}))
            table_rows.append([name, wording.model(model), score["score"], *(band or (None, None))])
        base = scores.get(layout.BASE_MODEL)
        views[name] = {
            "panels": [{"rows": rows}],
            "rule": base["score"] if base else None,
            "xLabel": metric.axis,
            "percent": metric.unit == PER_CENT,
        }
    drifts = {model: entry["drift"] for model, entry in run.guard.items() if "drift" in entry}
    if drifts:
        rows = []
        for model, drift in drifts.items():
            shown = f"{drift['kl']:.4f} nats a token"
            rows.append({**_point(run, model, drift["kl"], shown), "lo": drift["low"], "hi": drift["high"]})
            table_rows.append(["drift", wording.model(model), drift["kl"], drift["low"], drift["high"]])
        views["drift from the base"] = {"panels": [{"rows": rows}], "xLabel": "KL divergence, nats a token"}
    return Figure(
        id="guard",
        title="General ability: every model on the guard set",
        describe="Dots: each model's score on each set of the guard, which no task is about, and its drift from the base.",
        drawing={"kind": "dots", "views": views, "ys": [wording.model(m) for m in run.guard], "digits": 3},
        headers=["set", "model", "score (0 to 1), or nats", "95 % low", "95 % high"],
        rows=table_rows,
        note="The line is the base; orange is the last model. Intervals are over the rows of a set; of the neutral text and of the drift, over "
        "its paragraphs. Drift: KL divergence of the base's next-token probabilities from the model's.",
    )


def _point(run: RunFacts, model: str, value: float, shown: str) -> dict[str, object]:
    return {"y": wording.model(model), "v": value, "c": int(model == run.final), "t": shown}
