"""The moving bar of a terminal, drawn by rich."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Bar:
    """One bar; it is there until :meth:`stop`. What is printed meanwhile stands above it."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("  {task.percentage:>3.0f} %"),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[left]}"),
            console=Console(highlight=False),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=None, left="")

    def move(self, done: float, total: float, detail: str, left: str) -> None:
        """Show how much is done.

        Args:
            done: so far.
            total: of the whole, in the same unit.
            detail: what is behind the bar.
            left: the time left, as text.
        """
        self._progress.update(self._task, completed=done, total=total, description=detail, left=left)

    def stop(self) -> None:
        """Take it away."""
        self._progress.stop()
