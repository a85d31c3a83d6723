"""What a run tells while it goes. The library is silent; the command line shows it (``terminal.py``)."""

from __future__ import annotations

from collections.abc import Mapping


class Reporter:
    """Receives what happens; this one ignores it."""

    def stage(self, name: str, what: str) -> None:
        """A stage begins; ``what`` says in a few words what it does."""

    def progress(self, done: float, total: float, detail: str = "") -> None:
        """Within the stage: ``done`` of ``total``."""

    def finished(self, name: str, facts: Mapping[str, object]) -> None:
        """A stage is done; ``facts["seconds"]`` is the time since :meth:`stage`."""

    def skipped(self, name: str) -> None:
        """A stage was done before and is unchanged."""

    def message(self, text: str) -> None:
        """Something worth reading."""

    def warning(self, text: str) -> None:
        """Something to act on."""
