"""Progress of work that is counted in bytes or rows."""

from __future__ import annotations

import time
from pathlib import Path

from cpift.checkpoint.reader import open_checkpoint
from cpift.console.reporter import Reporter


def weight_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights."""
    return open_checkpoint(folder).nbytes


class Counter:
    """Adds up what is done, and reports it: in bytes with throughput, or in rows.

    Args:
        reporter: told of each step.
        total: how much there is to do.
        unit: ``bytes`` or ``rows``.
    """

    def __init__(self, reporter: Reporter, total: int, unit: str = "bytes") -> None:
        self._reporter, self._total, self._unit = reporter, total, unit
        self._done, self._began = 0, time.perf_counter()

    def __call__(self, amount: int) -> None:
        """Report that so much more is done."""
        self._done += amount
        if self._unit == "bytes":
            speed = self._done / max(time.perf_counter() - self._began, 1e-9)
            detail = f"{self._done / 1e9:.2f} GB, {speed / 1e9:.2f} GB/s"
        else:
            detail = f"{self._done} of {self._total} {self._unit}"
        self._reporter.progress(self._done, self._total, detail)
