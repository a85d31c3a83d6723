"""The command line in a process of its own, forked from one that has imported everything: it starts at once."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

_IMPORTS = ["preloaded", "cpift.cli.main", "cpift.runs.pipeline", "cpift.runs.stages.graph", "cpift.method.identify", "cpift.method.fuse", "cpift.train.fine_tune",
            "cpift.evaluation.scores", "cpift.planning.plan", "cpift.runs.publish", "transformers.models.llama.modeling_llama"]  # fmt: skip


def start(
    arguments: list[str], said: Path, place: Path | None = None, memory: int = 0, seconds: int = 0
) -> BaseProcess:
    """Start ``cpift ARGUMENTS`` in the folder ``place``; all it says goes to the file ``said``.

    ``memory``: bytes beyond those of the libraries, ``seconds``: of processor time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    process = context.Process(target=_main, args=(arguments, str(said), str(place or said.parent), memory, seconds))
    process.start()
    return process


def _main(arguments: list[str], said: str, place: str, memory: int, seconds: int) -> None:
    import torch

    from cpift.cli import main as cli

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
    sys.argv = ["cpift", *arguments]
    cli.main()
