"""What the command line shows: stages, progress with time left, warnings, tables of numbers."""

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

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
PLAIN_EVERY = 20.0  # seconds between two lines of progress where there is no terminal


def clean(text: str) -> str:
    """Without control characters: names come from files, and must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str) -> None:
    """One message, as it is: never taken for markup."""
    console.print(clean(text), markup=False, soft_wrap=True)


def is_live() -> bool:
    """May bars move and letters be bold? An empty NO_COLOR counts as none."""
    return console.is_terminal and not os.environ.get("NO_COLOR")


class Terminal(Reporter):
    """Shows a run: a moving bar on a terminal, a line now and then elsewhere or under NO_COLOR."""

    def __init__(self) -> None:
        self._live = is_live()
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
    table = Table(box=None, pad_edge=False, header_style="bold" if is_live() else "none")
    for i, header in enumerate(headers):
        table.add_column(clean(header), justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    wide = for_tables()
    wide.print()
    wide.print(table)


def for_tables() -> Console:
    """A file has no width: tables are not folded there."""
    return console if console.is_terminal else Console(highlight=False, width=200)
