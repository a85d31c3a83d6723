"""The page of a run that adds tasks to a model: what was gained and what was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpift.files.findings import read_findings
from cpift.metrics import described, intervals
from cpift.metrics.addition import Addition, addition_table
from cpift.metrics.change import Change
from cpift.metrics.guard import Drift
from cpift.metrics.score import ScoreEntry
from cpift.recipe.arrivals import Protect
from cpift.recipe.guard import NEUTRAL
from cpift.recipe.recipe import Recipe
from cpift.report import wording
from cpift.report.guard import change_line, drift_line, short
from cpift.report.html import Html, bullets, paragraph, table
from cpift.report.parts import Clause, Parts, Section

ARRIVALS = "cpift.arrivals/1"  # format of scores.json


def changes_of(result: Mapping[str, Any]) -> list[Change]:
    """The changes that ``scores.json`` holds; in one of earlier versions the neutral text is not marked as a guard set."""
    return [Change(**{"guard": change["task"] == NEUTRAL, **change}) for change in result["changes"]]


def summary_lines(result: Mapping[str, object]) -> list[str]:
    """What the terminal shows at the end: first what was gained and lost, then each task."""
    changes = changes_of(result)
    drift = drift_after(result)
    sentence = "; ".join(f"{where}: {what}" for where, what in headline(changes, drift))
    lines = [*map(change_line, changes), *([drift_line(drift)] if drift else [])]
    return [sentence, *(f"  {line}" for line in lines)]


def drift_after(result: Mapping[str, Any]) -> Drift | None:
    """How far the model after the last arrival has drifted from the model before; None where it was not measured."""
    models = list(result.get("guard", {}).get("models", {}).values())
    drift: Drift | None = models[-1].get("drift") if models else None
    return drift


def headline(changes: Sequence[Change], drift: Drift | None = None) -> list[Clause]:
    """New tasks, then kept ones, then general ability.

    Args:
        changes: of tasks and guard sets.
        drift: from the model before.
    """
    guard = [short(change) for change in changes if change.guard] + ([drift_line(drift)] if drift else [])
    parts = {
        "New": [short(change) for change in changes if change.new],
        "kept": [short(change) for change in changes if not change.new and not change.guard],
        "general ability": guard,
    }
    return [(where, "; ".join(said)) for where, said in parts.items() if said]


def arrivals_parts(
    result: Mapping[str, Any], recipe: Recipe, name: str, compared: Mapping[str, Any] | None = None
) -> Parts:
    """The page of a finished run of arrivals.

    Args:
        result: what ``scores.json`` holds.
        recipe: its recipe.
        name: of the run folder.
        compared: what ``additions.json`` holds, where other ways were tried.
    """
    changes = changes_of(result)
    sections = [
        Section("changes", "What was gained and lost", [_changes(changes)]),
        Section("matrix", "Each task after each arrival", [_matrix(result)]),
        Section("protection", "What protected the old", [_protection(result, recipe.protect)]),
    ]
    if compared is not None:
        rows = addition_table([Addition.read(row) for row in compared["rows"]])
        note = "Those ahead first. ▲ ahead of cpift add, ▼ behind, beyond noise (95 %, paired by row). One seed."
        sections.insert(
            1, Section("others", "Other ways, at equal tokens", [table(rows[0], rows[1:]), paragraph(note)])
        )
    return Parts(
        title=f"{name}: cpift report",
        kicker=Html("cpift add"),
        headline=headline(changes, drift_after(result)),
        lead=[paragraph("After minus before, paired by evaluation row. One run with one seed.", "soft")],
        warnings=[(found.text, found.remedy) for found in read_findings(result)],
        sections=sections,
    )


def _changes(changes: Sequence[Change]) -> Html:
    rows = []
    for change in changes:
        unit = change.unit
        interval = "–"
        if change.low is not None and change.high is not None:
            interval = wording.interval(change.low, change.high, unit)
        before, after = wording.score(change.before, unit), wording.score(change.after, unit)
        difference, role = wording.gap(change.difference, unit), _role(change)
        rows.append([change.task, role, before, after, difference, interval, change.verdict, change.rows])
    headers = ["task", "role", "before", "after", "difference", "95 % interval", "verdict", "rows"]
    return table(headers, rows, text=(1, 6))


def _role(change: Change) -> str:
    return "new" if change.new else "guard" if change.guard else "kept"


def _matrix(result: Mapping[str, Any]) -> Html:
    """Task × arrival; a score with its interval."""
    names = ["before", *(f"+ {task}" for task in result["arrivals"])]
    rows = []
    for task in result["tasks"]:
        entries = [scores.get(task) for scores in result["models"].values()]
        rows.append([task, *(_cell(entry) for entry in entries)])
    return table(["task", *names], rows)


def _cell(entry: ScoreEntry | None) -> str | None:
    if entry is None:
        return None
    band = intervals.of_score(entry)
    unit = described(entry["metric"]).unit
    shown = wording.score(entry["score"], unit)
    return shown if band is None else f"{shown} ({unit.number(band[0])} … {unit.number(band[1])})"


def _protection(result: Mapping[str, Any], protect: Protect) -> Html:
    share = result["protected"] / result["parameters"]
    frozen = (
        f"{wording.percent(share)} of the parameters ({result['protected']:,})" if result["protected"] else "nothing"
    )
    replay = f"{protect.replay:.0%} of the training rows, where rows are kept" if protect.replay else "off"
    average = f"weight {protect.average:g} of the trained model, {protect.interpolation}"
    ewc = [f"EWC: strength {protect.ewc:g}, by what matters for the kept rows."] if protect.ewc else []
    return bullets(
        [
            f"Frozen of the model before: {frozen}.",
            f"Replay: {replay}.",
            *ewc,
            f"Average with the model before: {average if protect.average < 1 else 'off'}.",
            f"The new core is put back after averaging: {'yes' if protect.transplant else 'no'}.",
        ]
    )
