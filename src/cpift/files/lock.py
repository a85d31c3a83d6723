"""A folder that one process works in at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cpift.errors import CpiftError
from cpift.files.layout import RunLayout


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the run folder for this process.

    Args:
        out: the folder, made where it is not there.

    Raises:
        CpiftError: another process has it, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CpiftError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
    lock = FileLock(RunLayout(out).lock, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise CpiftError(
            f"{out}: another cpift is at work in this folder; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise CpiftError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def in_use(out: Path) -> bool:
    """Does a process work in this folder? A folder that may only be read is taken to be in no use."""
    file = RunLayout(out).lock
    if not file.is_file():
        return False
    lock = FileLock(file, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False
