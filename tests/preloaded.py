"""The command line in a process of its own, forked from one that has imported everything: it starts at once."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_IMPORTS = ["preloaded", "cpift.cli.main", "cpift.runs.pipeline", "cpift.runs.stages.graph", "cpift.method.identify", "cpift.method.fuse", "cpift.train.fine_tune",
            "cpift.evaluation.scores", "cpift.planning.plan", "cpift.runs.publish", "transformers.models.llama.modeling_llama"]  # fmt: skip


def import_all() -> None:
    """What :func:`start` has imported; a name that is gone would only make it slow."""
    for name in _IMPORTS:
        importlib.import_module(name)


def start(
    arguments: list[str], said: Path, place: Path | None = None, memory: int = 0, seconds: int = 0, **environment: str
) -> BaseProcess:
    """Start ``cpift ARGUMENTS`` in the folder ``place``; all it says goes to the file ``said``.

    ``memory``: bytes beyond those of the libraries, ``seconds``: of processor time, ``environment``: more variables.
    """
    return _process(_main, arguments, str(said), str(place or said.parent), memory, seconds, environment)


def run_ranks(count: int, arguments: list[str], said: Path, **environment: str) -> tuple[list[int | None], str]:
    """``cpift ARGUMENTS`` in ``count`` processes of one training, as torchrun would start and end them.

    Returns the exit codes, and what they said.
    """
    files = [said.with_name(f"{said.name}.{rank}") for rank in range(count)]
    with _launcher(count) as variables:
        codes = _ended([start(arguments, files[int(v["RANK"])], **v, **environment) for v in variables])
    return codes, "".join(file.read_text() for file in files)


def call_ranks(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """``function(*arguments)`` in ``count`` processes of one training, each with one thread; all must end well."""
    with _launcher(count) as variables:
        codes = _ended([_process(_call, function, arguments, v) for v in variables])
    assert codes == [0] * count, codes


@contextmanager
def _launcher(count: int) -> Iterator[list[dict[str, str]]]:
    """The variables of each process; the store where they meet outlives them all, as torchrun's does."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    yield [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(count)]
    del store


def _ended(processes: list[BaseProcess]) -> list[int | None]:
    """Wait for all; where one has failed, the others are ended. Returns the exit codes."""
    began = time.monotonic()
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() - began > 300:
            for process in processes:
                process.join(5)  # it may fail as well, and say why
                process.terminate()
                process.join(30)
        wait([process.sentinel for process in processes if process.is_alive()], 1)
    return [process.exitcode for process in processes]


def _process(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def _call(function: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    import torch

    gc.freeze()
    torch.set_num_threads(1)
    os.environ.update(environment)
    function(*arguments)


def _main(arguments: list[str], said: str, place: str, memory: int, seconds: int, environment: dict[str, str]) -> None:
    import torch

    from cpift.cli import main as cli

    gc.freeze()  # each stage collects garbage, and need not look through the libraries: ten seconds of a tiny run
    torch.set_num_threads(1)
    if memory:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        room = int(status["VmSize"].split()[0]) * 1024 + memory
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    if seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    os.chdir(place)
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.environ.update(environment)
    sys.argv = ["cpift", *arguments]
    cli.main()
