"""What the command line shows: stages, progress with time left, warnings, the closing table."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from cpift.console import stopping
from cpift.console.format import duration as duration
from cpift.console.format import size as size
from cpift.console.progress import Counter
from cpift.console.reporter import Reporter
from cpift.console.time_left import TimeLeft
from cpift.metrics import described
from cpift.metrics.change import Change
from cpift.metrics.intervals import of_score
from cpift.metrics.metric import PER_CENT, Unit
from cpift.metrics.score import ScoreEntry, ScoresRecord

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
PLAIN_EVERY = 20.0  # seconds between two lines of progress where there is no terminal


def clean(text: str) -> str:
    """Without control characters: names come from files, and must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str) -> None:
    """One message, as it is: never taken for markup."""
    console.print(clean(text), markup=False, soft_wrap=True)


def _is_live() -> bool:
    """May bars move and letters be bold? An empty NO_COLOR counts as none."""
    return console.is_terminal and not os.environ.get("NO_COLOR")


class Terminal(Reporter):
    """Shows a run: a moving bar on a terminal, a line now and then elsewhere or under NO_COLOR."""

    def __init__(self) -> None:
        self._live = _is_live()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = time.monotonic()
        self._left = TimeLeft()

    def stage(self, name: str, what: str) -> None:
        """A stage begins."""
        stopping.check()
        say(f"{name}  {what}")
        self._last = time.monotonic()
        self._left = TimeLeft()
        if self._live:
            columns = (
                TextColumn("  {task.percentage:>3.0f} %"),
                BarColumn(),
                TextColumn("{task.description}"),
                TextColumn("{task.fields[left]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=None, left="")

    def progress(self, done: float, total: float, detail: str = "") -> None:
        """Within the stage: a moving bar, or a line now and then."""
        stopping.check()
        now = time.monotonic()
        seconds = self._left.after(now, done, total)
        left = "" if seconds is None else f"{duration(seconds)} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=clean(detail), left=left)
        elif now - self._last > PLAIN_EVERY:
            self._last = now
            say("  ".join(filter(None, (f"  {done / max(total, 1e-9):.0%}", detail, left))))
            sys.stdout.flush()

    def finished(self, name: str, facts: Mapping[str, object]) -> None:
        """A stage is done: how long it took."""
        self.close()
        seconds = facts["seconds"]
        say(f"  done in {duration(seconds)}" if isinstance(seconds, int | float) else "  done")
        sys.stdout.flush()

    def skipped(self, name: str) -> None:
        """A stage was done before."""
        say(f"{name}  is there, unchanged")

    def message(self, text: str) -> None:
        """A line on standard output."""
        say(text)

    def warning(self, text: str) -> None:
        """A line on standard error."""
        errors.print(f"warning: {clean(text)}", markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class BesideJson(Reporter):
    """Messages and warnings on standard error: standard output is JSON alone."""

    def message(self, text: str) -> None:
        """A line on standard error."""
        errors.print(clean(text), markup=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        """A line on standard error."""
        errors.print(f"warning: {clean(text)}", markup=False, soft_wrap=True)


class _Reading(Terminal):
    """Of a command of its own: the bar comes with the first bytes, and goes with the last."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = False

    def progress(self, done: float, total: float, detail: str = "") -> None:
        if not self._begun and self._live:
            self.stage("", "reading")
        self._begun = True
        super().progress(done, total, detail)
        if done >= total:
            self.close()


def byte_progress(total: int) -> Counter:
    """A callback for a command of its own that shows bytes and throughput."""
    return Counter(_Reading(), total)


def numbers_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column holds names, and the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold" if _is_live() else "none")
    for i, header in enumerate(headers):
        table.add_column(clean(header), justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    wide = console if console.is_terminal else Console(highlight=False, width=200)
    wide.print()
    wide.print(table)


def scores_table(result: ScoresRecord) -> None:
    """Models × tasks, each score in the unit of its metric."""
    tasks = result["tasks"]
    any_row = next(iter(result["models"].values()))
    table = Table(box=None, pad_edge=False, header_style="bold" if _is_live() else "none")
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
    wide = console if console.is_terminal else Console(highlight=False, width=200)
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
