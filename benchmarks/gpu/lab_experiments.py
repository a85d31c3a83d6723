"""The laboratory's experiments (benchmarks/lab) on the card: each a process of its own, side by side, until the time is up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from step import ROOT, Skip, Step, is_cuda, need, run

SCRIPT = ROOT / "benchmarks" / "lab" / "run.py"
EXPERIMENTS = ("e2", "e1", "m1", "m2")
UNITS = 30  # at most


def work(step: Step) -> None:
    need("numpy", "cpift.method.identify")
    if not SCRIPT.is_file():
        raise Skip("needs benchmarks/lab, which this checkout does not have")
    assert step.results is not None
    out = step.results / "lab"
    options = ["--out", str(out), "--units", str(1 if step.tiny else UNITS), "--device", "cuda" if is_cuda() else "cpu"]
    options += ["--tiny"] if step.tiny else []
    experiments = EXPERIMENTS[:2] if step.tiny else EXPERIMENTS
    commands = {name: [sys.executable, "-u", str(SCRIPT), name, *options] for name in experiments}
    codes = side_by_side(commands, step.left())
    for name in experiments:
        step.record.add(f"{name}: cells", lines_of(out / f"{name}.jsonl"), note=_state(codes[name]))
        if codes[name] not in (0, None):
            step.record.fault(f"{name} ended with exit code {codes[name]}")


def side_by_side(commands: dict[str, Sequence[str]], seconds: float) -> dict[str, int | None]:
    """Exit code of each; None where it was ended because the time was up."""
    until = time.monotonic() + seconds
    processes = {name: subprocess.Popen(command) for name, command in commands.items()}
    codes: dict[str, int | None] = {}
    for name, process in processes.items():
        try:
            codes[name] = process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            codes[name] = None
    for process in processes.values():
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)  # a cell is one line of its file, whole or not there
            process.wait()
    return codes


def lines_of(file: Path) -> int:
    """Finished cells in a file of outcomes."""
    try:
        return sum(line.endswith(b"\n") for line in file.read_bytes().splitlines(keepends=True))
    except OSError:
        return 0


def _state(code: int | None) -> str:
    return "the time was up; called again, it resumes" if code is None else "all" if code == 0 else "failed"


if __name__ == "__main__":
    run(work)
