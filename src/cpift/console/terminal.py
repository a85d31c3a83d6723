"""What the command line shows: stages, progress with time left, warnings, tables of numbers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cpift.console import stopping
from cpift.console.format import duration as duration
from cpift.console.format import size as size
from cpift.console.progress import Counter
from cpift.console.reporter import Reporter
from cpift.console.time_left import TimeLeft

if TYPE_CHECKING:
    from cpift.console.bar import Bar

PLAIN_EVERY = 20.0  # seconds between two lines of progress where there is no terminal
FILE_WIDTH = 200  # letters of a line of a table where there is no terminal
BAR_AFTER = 0.5  # seconds of reading before a bar is shown


def clean(text: str) -> str:
    """Without control characters: names come from files, and must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str) -> None:
    """One message, as it is; above the bar, where one moves."""
    print(clean(text), flush=True)


def say_aside(text: str) -> None:
    """One message on standard error."""
    print(clean(text), file=sys.stderr, flush=True)


def is_live() -> bool:
    """May bars move and letters be bold? An empty NO_COLOR counts as none."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def is_terminal() -> bool:
    """Does standard output go to a terminal? FORCE_COLOR and TTY_COMPATIBLE decide it as they do for rich."""
    if os.environ.get("FORCE_COLOR"):
        return True
    compatible = os.environ.get("TTY_COMPATIBLE", "")
    return compatible == "1" if compatible in ("0", "1") else sys.stdout.isatty()


class Terminal(Reporter):
    """Shows a run: a moving bar on a terminal, a line now and then elsewhere or under NO_COLOR."""

    def __init__(self) -> None:
        self._live = is_live()
        self._bar: Bar | None = None
        self._last = time.monotonic()
        self._left = TimeLeft()

    def stage(self, name: str, what: str) -> None:
        """A stage begins."""
        stopping.check()
        say(f"{name}  {what}")
        self._last = time.monotonic()
        self._left = TimeLeft()
        if self._live:
            from cpift.console.bar import Bar  # noqa: PLC0415 - rich takes longer to import than many a command runs

            self._bar = Bar()

    def progress(self, done: float, total: float, detail: str = "") -> None:
        """Within the stage: a moving bar, or a line now and then."""
        stopping.check()
        now = time.monotonic()
        seconds = self._left.after(now, done, total)
        left = "" if seconds is None else f"{duration(seconds)} left"
        if self._bar is not None:
            self._bar.move(done, total, clean(detail), left)
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
        say_aside(f"warning: {text}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class BesideJson(Reporter):
    """Messages and warnings on standard error: standard output is JSON alone."""

    def message(self, text: str) -> None:
        """A line on standard error."""
        say_aside(text)

    def warning(self, text: str) -> None:
        """A line on standard error."""
        say_aside(f"warning: {text}")


class _Reading(Terminal):
    """Of a command of its own: a bar for what takes long enough to be looked at, gone with the last byte."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = time.monotonic()

    def progress(self, done: float, total: float, detail: str = "") -> None:
        if self._live and self._bar is None and done < total and time.monotonic() - self._begun > BAR_AFTER:
            self.stage("", "reading")
        super().progress(done, total, detail)
        if done >= total:
            self.close()


def byte_progress(total: int) -> Counter:
    """A callback for a command of its own that shows bytes and throughput."""
    return Counter(_Reading(), total)
