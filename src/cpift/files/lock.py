"""A folder that one process works in at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpift.errors import CpiftError


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the run folder for this process. Raises :class:`CpiftError` where another has it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CpiftError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CpiftError(
                f"{out}: another cpift is at work in this folder; wait for it, or choose another --out"
            ) from None
        yield


def in_use(out: Path) -> bool:
    """Does a process work in this folder?"""
    if not (out / ".lock").is_file():
        return False
    with (out / ".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
