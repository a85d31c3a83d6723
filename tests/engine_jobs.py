"""What workers are given to do in the tests; they find this file by PYTHONPATH."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from cpift.errors import CpiftError


def meet(mine: Path, other: Path) -> tuple[int, int, str]:
    """Return once the other job is here as well: process, threads, folder."""
    os.write(1, b"here, beneath Python\n")
    mine.touch()
    for _ in range(600):
        if other.exists():
            return os.getpid(), torch.get_num_threads(), os.getcwd()
        time.sleep(0.1)
    raise TimeoutError(f"{other.name} never came")


def die_once(mark: Path) -> int:
    """Killed the first time, done the second; the process."""
    if not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def fail(mark: Path) -> None:
    """Fails, and leaves a trace of each try."""
    with mark.open("a") as file:
        file.write("x")
    raise RuntimeError("the 7th layer is missing")


def refuse(after: Path) -> None:
    """A user's mistake, found once ``after`` is there."""
    while not after.exists():
        time.sleep(0.02)
    raise CpiftError("rows.jsonl: line 3 is no row; mend it")


def sleep(mark: Path) -> None:
    """For long; ``mark`` holds the process."""
    mark.with_suffix(".partial").write_text(str(os.getpid()))
    mark.with_suffix(".partial").replace(mark)
    time.sleep(300)
