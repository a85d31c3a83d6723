"""The one counter of work that reports how much more is done: bytes with throughput, or rows."""

from __future__ import annotations

import time

from cpift.console.format import size
from cpift.console.reporter import Reporter


class Counter:
    """Adds up what is done, and reports it.

    Args:
        reporter: shows each step.
        total: how much there is to do.
        unit: ``bytes``, shown with throughput, or the name of what is counted, such as ``rows``.
    """

    def __init__(self, reporter: Reporter, total: int, unit: str = "bytes") -> None:
        self._reporter, self._total, self._unit = reporter, total, unit
        self._done, self._began = 0, time.monotonic()

    def __call__(self, amount: int) -> None:
        """Report that so much more is done."""
        self._done += amount
        if self._unit == "bytes":
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            detail = f"{size(self._done)} of {size(self._total)}, {size(rate)}/s"
        else:
            detail = f"{self._done} of {self._total} {self._unit}"
        self._reporter.progress(self._done, self._total, detail)
