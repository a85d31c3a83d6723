"""Worker processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

import torch

from cpift.distributed.jobs import Engine, Job, Reply
from cpift.errors import CpiftError
from cpift.kernels.threads import core_count


class Local(Engine):
    """A number of processes that share the cores, each with a GPU of its own where there are GPUs.

    They last as long as one call of ``run``. Raises :class:`CpiftError` for more jobs than GPUs.
    """

    def __init__(self, jobs: int) -> None:
        gpus = torch.cuda.device_count()
        if 0 < gpus < jobs:
            fewer = f"set --jobs {gpus}" if gpus > 1 else "leave --jobs out"
            raise CpiftError(
                f"--jobs {jobs}: each job takes a GPU, and {_gpus(gpus)} here; {fewer}. Several small jobs on one GPU: "
                "--engine ray --gpus-per-job 0.5. On the processor: hide the GPUs (CUDA_VISIBLE_DEVICES=)"
            )
        super().__init__(jobs, max(1, core_count() // jobs))
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Job]] = {}

    def _start(self, job: Job, attempt: int) -> None:
        while self._idle:
            worker = self._idle.pop()
            with suppress(OSError):  # it died meanwhile
                return self._send(worker, job, attempt)
            worker.end()
        taken = {worker.number for worker, _ in self._busy.values()}
        number = next(n for n in range(self.jobs) if n not in taken)
        self._send(_Worker(number, self.threads), job, attempt)

    def _send(self, worker: _Worker, job: Job, attempt: int) -> None:
        worker.link.send((job, attempt, self.threads))
        self._busy[worker.link] = worker, job

    def _wait(self) -> Iterator[tuple[Job, Reply]]:
        for link in wait(list(self._busy)):
            assert isinstance(link, Connection)
            worker, job = self._busy.pop(link)
            try:
                reply = link.recv()
                self._idle.append(worker)
            except (EOFError, OSError):
                reply = Reply(failed=worker.died())
            yield job, reply

    def _stop(self) -> None:
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            worker.end()
        self._idle, self._busy = [], {}


class _Worker:
    """A process that does one job after another."""

    def __init__(self, number: int, threads: int) -> None:
        self.number = number
        self.link, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cpift.distributed.worker", str(theirs.fileno())],
                stdin=subprocess.PIPE,  # never written to: its end tells the worker that this process is no more
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # an interrupt at the terminal is the leader's alone
                env={**os.environ, "OMP_NUM_THREADS": str(threads), **_gpu(number)},
            )
        finally:
            theirs.close()

    def died(self) -> str:
        """Of a process whose end of the link is closed: how it ended."""
        code = self._process.wait()
        self.end()
        return f"its worker died of {signal.Signals(-code).name}" if code < 0 else f"its worker ended with code {code}"

    def end(self) -> None:
        """End the process and what it started, at once: a stage is whole, or not there."""
        with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.link.close()
        assert self._process.stdin is not None
        self._process.stdin.close()


def unused_gpus() -> str:
    """What to do about the GPUs that one process leaves unused, as one line; "" where there are none."""
    gpus = torch.cuda.device_count()
    if gpus < 2:
        return ""
    return (
        f"{_gpus(gpus)} here, and one process uses the first alone. To use all: --jobs {gpus} for one job a GPU, or "
        f"torchrun --nproc-per-node {gpus} -m cpift.cli … for one training on all of them (docs/cluster.md)"
    )


def _gpus(count: int) -> str:
    return "there is 1 GPU" if count == 1 else f"there are {count} GPUs"


def _gpu(number: int) -> dict[str, str]:
    """Where there are several GPUs, the one that this worker sees."""
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {"CUDA_VISIBLE_DEVICES": (names if len(names) >= count else list(map(str, range(count))))[number]}
