"""The laboratory's experiments (benchmarks/lab) on the card: each a process of its own, side by side, until the time is up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from compare_methods import link
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
    commands: dict[str, Sequence[str]] = {
        name: [sys.executable, "-u", str(SCRIPT), name, *options] for name in experiments
    }
    (step.scratch / "lab-models").mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    link(out / "models", step.scratch / "lab-models")  # they need not stay
    try:
        codes = side_by_side(commands, 0.97 * step.left())
    finally:
        (out / "models").unlink()
    for name in experiments:
        cells = cells_of(out / f"{name}.jsonl")
        step.record.add(f"{name}: cells", len(cells), note=_state(codes[name]))
        for label, (mean, note) in accuracies(cells).items():
            step.record.add(f"{label}: ACC", mean, "%", note)
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


def cells_of(file: Path) -> list[Mapping[str, Any]]:
    """Finished cells in a file of outcomes."""
    from lab.outcomes import lines

    return list(lines(file)) if file.is_file() else []


def accuracies(cells: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, str]]:
    """Mean accuracy after the last arrival in per cent, of each method of each experiment, and its spread over units."""
    from lab.tuning import final_accuracy

    values: dict[str, list[float]] = {}
    for cell in cells:
        if "stages" in cell and not cell["experiment"].endswith("-tuning"):
            values.setdefault(f"{cell['experiment']}, {cell['label']}", []).append(100 * final_accuracy(cell))
    return {
        label: (fmean(some), f"± {stdev(some):.2g} over {len(some)} units" if len(some) > 1 else "1 unit")
        for label, some in values.items()
    }


def _state(code: int | None) -> str:
    return "the time was up; called again, it resumes" if code is None else "all" if code == 0 else "failed"


if __name__ == "__main__":
    run(work)
