"""Independent jobs, a number of them in parallel. A job whose worker dies is tried again, a refused one stops all."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cpift.errors import CpiftError

TRIES = 3
_TAIL = 10, 1500  # lines of a log that a message quotes, and their characters


@dataclass(frozen=True)
class Job:
    """A call that a worker makes.

    Attributes:
        name: of the job.
        what: what it does, for the terminal.
        function: found by its module and name.
        arguments: pickled.
        log: file to which the job's output is appended. All workers see it under the same path.
        place: working folder, where relative paths start. All workers see it under the same path.
    """

    name: str
    what: str
    function: Callable[..., object]
    arguments: tuple[object, ...]
    log: Path
    place: str = field(default_factory=os.getcwd)


@dataclass(frozen=True)
class Reply:
    """The result of a job.

    Attributes:
        value: what the call returned.
        refused: why it was refused: a user's mistake.
        failed: how it failed.
    """

    value: object = None
    refused: str = ""
    failed: str = ""


class JobError(CpiftError):
    """A job that was refused, or has failed too often; ``job`` is its name."""

    def __init__(self, job: str, text: str) -> None:
        super().__init__(text)
        self.job = job


class Engine(ABC):
    """Runs jobs. Used in a ``with``; each subclass says how one is started, awaited and ended.

    jobs: how many run side by side. threads: of each. elsewhere: is a worker's machine another than this one?
    """

    elsewhere = False

    def __init__(self, jobs: int, threads: int) -> None:
        self.jobs, self.threads = jobs, threads

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        return

    @abstractmethod
    def _start(self, job: Job, attempt: int) -> None:
        """Have a worker begin."""

    @abstractmethod
    def _wait(self) -> Iterable[tuple[Job, Reply]]:
        """Wait until at least one job that was started is over."""

    @abstractmethod
    def _stop(self) -> None:
        """End what is still running."""

    def run(self, jobs: Sequence[Job], say: Callable[[str], None]) -> Generator[tuple[Job, object], None, None]:
        """Each job with the value of its call, as they end; closed before, it ends the others.

        Raises:
            JobError: a job raised a :class:`CpiftError`, whose message this one has; or failed :data:`TRIES` times,
                then with the last lines of its log. The others are ended first.
        """
        waiting, tries, began, running = deque(jobs), Counter[str](), {}, 0
        try:
            while waiting or running:
                while waiting and running < self.jobs:
                    job = waiting.popleft()
                    tries[job.name] += 1
                    began[job.name] = time.monotonic()
                    again = f", try {tries[job.name]} of {TRIES}" if tries[job.name] > 1 else ""
                    job.log.parent.mkdir(parents=True, exist_ok=True)
                    job.log.touch()
                    say(f"{job.name}  {job.what}{again}; log: {job.log}")
                    self._start(job, tries[job.name])
                    running += 1
                for job, reply in self._wait():
                    running -= 1
                    if reply.refused:
                        raise JobError(job.name, reply.refused)
                    if reply.failed and tries[job.name] == TRIES:
                        raise JobError(job.name, _given_up(job, reply.failed))
                    if reply.failed:
                        say(f"{job.name}  {reply.failed}; it is tried again")
                        waiting.append(job)
                        continue
                    say(f"{job.name}  done in {time.monotonic() - began[job.name]:.0f} s")
                    yield job, reply.value
        finally:
            self._stop()


def _given_up(job: Job, why: str) -> str:
    try:
        lines = [line for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    tail = "\n".join(lines[-_TAIL[0] :])[-_TAIL[1] :] or "(nothing)"
    return f"{job.name}: failed {TRIES} times, at last: {why}. The end of {job.log}: {tail}"
