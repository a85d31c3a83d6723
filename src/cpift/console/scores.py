"""The closing table of a run: models × tasks, and the guard set."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from cpift.console.drawn import for_tables
from cpift.console.terminal import clean, is_live
from cpift.metrics import described
from cpift.metrics.change import Change
from cpift.metrics.intervals import of_score
from cpift.metrics.metric import PER_CENT, Unit
from cpift.metrics.score import ScoreEntry, ScoresRecord


def scores_table(result: ScoresRecord) -> None:
    """Models × tasks, each score in the unit of its metric."""
    tasks = result["tasks"]
    any_row = next(iter(result["models"].values()))
    table = Table(box=None, pad_edge=False, header_style="bold" if is_live() else "none")
    table.add_column("model", overflow="fold")
    metrics = {task: described(any_row[task]["metric"]) for task in tasks}
    for task, metric in metrics.items():
        mark = "" if metric.unit == PER_CENT else f" ({metric.name})"
        table.add_column(clean(task) + mark, justify="right", overflow="fold")
    for title in ("mean", "share", "worst", "<base", "<spec"):
        table.add_column(title, justify="right", overflow="fold")
    last = list(result["models"])[-1]
    for model, row in result["models"].items():
        row_summary = result["summary"][model]
        cells = [_score(row[task]) if task in row else "" for task in tasks]
        mean = "" if row_summary["mean_score"] is None else f"{100 * row_summary['mean_score']:.1f}"
        share = "" if row_summary["mean_share"] is None else f"{row_summary['mean_share']:.2f}"
        name = clean(model) + (" = model" if model == last else "")
        behind = [str(row_summary["below_base"]), str(row_summary["below_specialist"])]
        table.add_row(Text(name), *cells, mean, share, Text(clean(row_summary["worst_task"] or "")), *behind)
    wide = for_tables()
    shown = dict.fromkeys(f"{metric.name} in {metric.unit.short}" for metric in metrics.values())
    wide.print(f"\nscores: {', '.join(shown)}", markup=False)
    wide.print(table)
    wide.print("share: mean share of the specialists' scores; worst: the task with the least share;", markup=False)
    wide.print("<base, <spec: tasks more than 5 % below the base, below the task's own probe", markup=False)
    for line in _guard_lines(result, last):
        wide.print(line, markup=False)
    for unit, half in _widest_intervals(result).items():
        wide.print(f"95 % intervals of the scores: at most ± {unit.number(half)} {unit.difference}", markup=False)


def _guard_lines(result: ScoresRecord, last: str) -> list[str]:
    """The last model against the base on the guard set: a line a set, and the drift."""
    record = result.get("guard")
    if record is None or last not in record["changes"]:
        return []
    lines = ["general ability (guard set), the model against the base:"]
    for change in (Change(**given) for given in record["changes"][last]):
        unit = change.unit
        band = ""
        if change.low is not None and change.high is not None:
            band = f", 95 % {unit.number(change.low)} … {unit.number(change.high)}"
        gap = f"{unit.number(change.before)} → {unit.number(change.after)} {unit.short}{band}"
        lines.append(f"  {clean(change.task)}: {change.verdict} ({gap})")
    drift = record["models"][last].get("drift")
    return [*lines, f"  drift from the base: {drift['kl']:.3f} nats a token"] if drift else lines


def _widest_intervals(result: ScoresRecord) -> dict[Unit, float]:
    """By unit, the longer half of the widest interval."""
    found: dict[Unit, float] = {}
    for entry in (entry for row in result["models"].values() for entry in row.values()):
        interval = of_score(entry)
        if interval is not None:
            unit, (low, high) = described(entry["metric"]).unit, interval
            found[unit] = max(found.get(unit, 0.0), entry["score"] - low, high - entry["score"])
    return found


def _score(entry: ScoreEntry) -> str:
    return described(entry["metric"]).unit.number(entry["score"])
