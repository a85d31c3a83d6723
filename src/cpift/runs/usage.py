"""What making a stage used: versions, and the peak of memory."""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

import cpift

_STATUS = Path("/proc/self/status")  # of Linux
VERSIONS = ("cpift", "torch", "transformers", "trl", "accelerate", "datasets", "safetensors", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of python and of the libraries that decide about results."""
    # Of the package itself by its own word: it may run from its source, without being installed.
    found = {name: importlib.metadata.version(name) for name in VERSIONS if name != "cpift"}
    return {"python": platform.python_version(), "cpift": cpift.__version__, **found}


def reset_peak() -> None:
    """Let :func:`peak_memory` count from here, where the system can."""
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak memory of this process in bytes, since the last reset where the system can tell; 0 where it cannot."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return _peak_of_posix()


def _peak_of_posix() -> int:
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if platform.system() == "Linux" else 1)
