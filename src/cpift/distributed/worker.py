"""The worker's side: one job after another, received over a connection; a job's output goes to its log."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

import torch

from cpift.distributed.jobs import Job, Reply
from cpift.errors import CpiftError, is_out_of_memory


def work(job: Job, attempt: int, threads: int) -> Reply:
    """Make the job's call.

    Args:
        job: the job; it runs in its own working folder.
        attempt: how often it has been tried, this time included.
        threads: threads of torch.
    """
    before = os.getcwd()
    try:
        os.chdir(job.place)
        log = os.open(job.log, os.O_WRONLY | os.O_APPEND)  # made by the leader: where it is not seen, nothing is
    except OSError as error:
        text = f"{job.name}: {error.filename} is not seen on {platform.node()} ({error.strerror}); "
        return Reply(refused=text + "all nodes must see the run folder, and where you started, under one path")
    try:
        with _output_to(log):
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            print(f"== {now} {job.name}, try {attempt}, process {os.getpid()} on {platform.node()}", flush=True)
            torch.set_num_threads(threads)
            return _call(job)
    finally:
        os.close(log)
        os.chdir(before)


def _call(job: Job) -> Reply:
    try:
        return Reply(job.function(*job.arguments))
    except CpiftError as error:
        print(f"refused: {error}", file=sys.stderr)
        return Reply(refused=str(error))
    except Exception as error:
        traceback.print_exc()
        if is_out_of_memory(error):  # it would end the same way again, after the same time
            return Reply(refused=f"{job.name}: out of memory ({' '.join(str(error).split())[:300]})")
        return Reply(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


@contextmanager
def _output_to(log: int) -> Iterator[None]:
    """Both streams, also what libraries write to them beneath Python, go to the log."""
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    _flush()
    for stream in kept:
        os.dup2(log, stream)
    try:
        yield
    finally:
        with suppress(OSError):  # of a full disk, which the job has met before
            _flush()
        for stream, old in kept.items():
            os.dup2(old, stream)
            os.close(old)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _end_with_leader() -> None:
    """Standard input ends when the leader does, however it ended; nobody then waits for this process."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """A process that :class:`cpift.distributed.local.Local` has started."""
    threading.Thread(target=_end_with_leader, daemon=True).start()
    os.set_inheritable(int(sys.argv[1]), False)
    link = Connection(int(sys.argv[1]))
    while True:
        try:
            job, attempt, threads = link.recv()
        except EOFError:
            return
        link.send(work(job, attempt, threads))


if __name__ == "__main__":
    main()
