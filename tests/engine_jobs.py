"""What workers are given to do in the tests, and what is seen of them; workers find this file by PYTHONPATH."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cpift.distributed.engine import Job
from cpift.errors import CpiftError


@contextmanager
def two_nodes() -> Iterator[str]:
    """A Ray cluster of two nodes of one core each, whose workers find the tests; its address."""
    import pytest
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000}
    with pytest.MonkeyPatch.context() as patch:
        found = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, found)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        try:
            cluster.add_node(**small)
            yield cluster.address
        finally:
            cluster.shutdown()


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


def no_memory(mark: Path) -> None:
    """Runs out of a device's memory, and leaves a trace of each try."""
    with mark.open("a") as file:
        file.write("x")
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def job(place: Path, function: Any, *arguments: Any, name: str = "") -> Job:
    """A job with its log below ``place``."""
    name = name or function.__name__
    return Job(name, "test", function, arguments, place / "logs" / f"{name}.log", str(place))


def gone(process: int) -> bool:
    """Is the process over, within a few seconds?"""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def kill_a_worker(log: Path, after: float = 0.0) -> None:
    """So many seconds after it has begun."""
    while True:
        found = re.search(r"process (\d+)", log.read_text()) if log.is_file() else None
        if found:
            time.sleep(after)
            os.kill(int(found[1]), signal.SIGKILL)
            return
        time.sleep(0.01)


def facts(out: Path, stage: str) -> dict[str, Any]:
    """What a finished stage tells of itself."""
    found: dict[str, Any] = json.loads((out / "stages" / stage / "stage.json").read_text())["facts"]
    return found
