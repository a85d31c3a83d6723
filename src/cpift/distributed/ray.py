"""Workers on a Ray cluster. All nodes see the run folder under one path."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType

from cpift.distributed.jobs import Engine, Job, Reply
from cpift.distributed.worker import work
from cpift.errors import CpiftError
from cpift.extras import install


class Ray(Engine):
    """Jobs are Ray tasks, which Ray itself does not repeat: failures are counted in one place.

    Args:
        jobs: in parallel. None: as many as the cluster has room for, one a GPU, or one a node without GPUs. Each has an
            equal share of a node's cores.
        address: of the cluster.
        gpus_per_job: from 0 to 1.
    """

    elsewhere = True

    def __init__(self, jobs: int | None, address: str | None, gpus_per_job: float | None) -> None:
        super().__init__(jobs or 0, 0)
        if importlib.util.find_spec("ray") is None:
            raise CpiftError(f"--engine ray: Ray is not installed; {install('ray')}")
        self._address, self._gpus = address, gpus_per_job
        self._busy: dict[object, Job] = {}

    def __enter__(self) -> Ray:
        ray = self._ray = importlib.import_module("ray")
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, self._address)
        try:
            self._share_out([node["Resources"] for node in ray.nodes() if node["Alive"]])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._ray.shutdown()

    def _share_out(self, nodes: list[dict[str, float]]) -> None:
        """Settle jobs side by side, and GPUs and threads of each, by what the nodes have."""
        if self._gpus is None:
            self._gpus = 1 if any(node.get("GPU") for node in nodes) else 0
        room = {i: int(node.get("GPU", 0) / self._gpus) if self._gpus else 1 for i, node in enumerate(nodes)}
        room = {i: count for i, count in room.items() if count and nodes[i].get("CPU")}
        if not room:
            what = f"no node of the cluster has {self._gpus:g} GPU" if self._gpus else "the cluster has no CPU"
            raise CpiftError(f"--engine ray: {what} for a job; see ray status")
        self.jobs = self.jobs or sum(room.values())
        more = -(-self.jobs // sum(room.values())) if not self._gpus else 1  # several on a node
        self.threads = max(1, min(int(nodes[i]["CPU"]) // (count * more) for i, count in room.items()))

    def _start(self, job: Job, attempt: int) -> None:
        options = {"num_cpus": self.threads, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD", "name": job.name}
        task = self._ray.remote(work).options(max_retries=0, **options)
        self._busy[task.remote(job, attempt, self.threads)] = job

    def _wait(self) -> Iterator[tuple[Job, Reply]]:
        ready, _ = self._ray.wait(list(self._busy), num_returns=1)
        for task in ready:
            job = self._busy.pop(task)
            try:
                reply = self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                reply = Reply(failed=_first_line(error))
            yield job, reply

    def _stop(self) -> None:
        for task in self._busy:
            with suppress(Exception):  # what is over, or out of reach, needs no end
                self._ray.cancel(task, force=True)
        self._busy = {}


def _connect(ray: ModuleType, address: str | None) -> None:
    where = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _answers(where)
        ray.init(address=where, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (OSError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        why = f"no cluster at {where or 'this machine'} ({_first_line(error)})"
        raise CpiftError(f"--engine ray: {why}; start one by ray start --head, and name it by --address") from error
    finally:
        with suppress(ValueError, TypeError):  # no main thread, or no handler of Python's
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which says nothing


def _answers(address: str | None) -> None:
    """Raise ``OSError`` where nobody listens: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else ''}"[:300]
