"""Where independent jobs run: in worker processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable

from cpift.distributed import ranks
from cpift.distributed.jobs import Engine, Job, JobError
from cpift.distributed.local import Local, unused_gpus
from cpift.distributed.ray import Ray
from cpift.errors import CpiftError

__all__ = ["Engine", "Job", "JobError", "make_engine"]


def make_engine(
    name: str = "local",
    jobs: int | None = None,
    address: str | None = None,
    gpus_per_job: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Engine | None:
    """The engine that these options ask for; None: one job at a time, in this process.

    Args:
        name: ``local``, or ``ray``.
        jobs: jobs side by side; by default 1, under Ray as many as the cluster has room for.
        address: of the Ray cluster; by default ``RAY_ADDRESS``, else one on this machine, started where none is there.
        gpus_per_job: under Ray; a part of 1, or 1; by default 1 where the cluster has GPUs.
        say: called with one line where GPUs stay unused: several, no ``jobs``, and no launcher.

    Raises:
        CpiftError: an unknown engine, an option that it does not have, several processes under a launcher, or more jobs
            than this machine has GPUs, where it has any.
    """
    if name not in ("local", "ray"):
        raise CpiftError(f"--engine {name}: choose local or ray")
    for option, value in (("--address", address), ("--gpus-per-job", gpus_per_job)):
        if name == "local" and value is not None:
            raise CpiftError(f"{option}: only with --engine ray")
    if jobs is not None and jobs < 1:
        raise CpiftError(f"--jobs {jobs}: at least 1")
    if gpus_per_job is not None and not 0 <= gpus_per_job <= 1:
        raise CpiftError(f"--gpus-per-job {gpus_per_job:g}: a job trains on one GPU; for several use torchrun")
    if name == "local" and jobs in (None, 1):
        if jobs is None and ranks.size() == 1 and (unused := unused_gpus()):
            say(unused)
        return None
    if ranks.size() > 1:
        raise CpiftError(
            "--engine, --jobs: not under torchrun or accelerate launch, where all processes are at one job"
        )
    if name == "local":
        return Local(jobs or 1)
    return Ray(jobs, address, gpus_per_job)
