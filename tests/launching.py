"""Start the command line under a launcher, several processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "{n}", "-m", "cpift.cli"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "{n}",
                   "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "cpift.cli"],
}  # fmt: skip


def start(processes: int, *arguments: Any, launcher: str = "torchrun", **environment: str) -> subprocess.Popen[str]:
    """``cpift ARGUMENTS`` in so many processes."""
    command = [part.format(n=processes) for part in LAUNCHERS[launcher]]
    return subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    out, errors = process.communicate(timeout=300)
    return process.returncode, out, errors


def process_of_rank(launcher: int, rank: int) -> int | None:
    """The id of the process with this rank below a launcher, once it is there."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == launcher and f"RANK={rank}".encode() in words:
            return int(folder.name)
    return None
