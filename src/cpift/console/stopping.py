"""A request to stop outlives libraries that catch every exception: swallowed once, it is met again at the next step.

(The fingerprints of ``datasets``, for one, are taken within a bare ``except``: an interrupt that falls there is gone.)
"""

from __future__ import annotations

import signal
from types import FrameType

_asked = False


def listen() -> None:
    """Take SIGINT and SIGTERM as requests to stop: each raises ``KeyboardInterrupt``."""
    global _asked
    _asked = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def check() -> None:
    """Raise ``KeyboardInterrupt`` where a stop was asked for before; called again and again by what takes long."""
    if _asked:
        raise KeyboardInterrupt


def _stop(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt
