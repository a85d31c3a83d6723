"""Run a command as a process of its own, and give its time, memory and reading, by the kernel's own accounting."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """One run: wall and processor seconds; peak of the memory that no memory map shares, bytes; bytes by read().

    inner: the seconds that the command itself prints, of its work without start-up; else those of the whole process.
    """

    wall: float
    cpu: float
    private: int
    read: int
    inner: float


def run(
    command: Sequence[str], threads: int, env: dict[str, str] | None = None, limit: float = math.inf
) -> Measured | None:
    """Run the command once; its output goes to stderr where it fails. None: it took longer than ``limit`` seconds."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **limits, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    private = read = 0
    output = b""
    status, io = Path(f"/proc/{process.pid}/status"), Path(f"/proc/{process.pid}/io")
    while True:
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            private = max(private, int(lines.get("RssAnon", "0").split()[0]) * 1024)
            read = max(read, int(io.read_text().split("rchar: ")[1].split()[0]))
        except (OSError, ValueError, IndexError):
            pass
        output = (output + (process.stdout.read() or b""))[-20000:]
        pid, code, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            output += process.stdout.read() or b""
            break
        if time.perf_counter() - began > limit:
            process.kill()
            process.communicate()
            return None
        time.sleep(0.005)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        sys.stderr.write(output.decode(errors="replace"))
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    printed = [line.split()[1] for line in output.decode(errors="replace").splitlines() if line.startswith("seconds ")]
    return Measured(wall, usage.ru_utime + usage.ru_stime, private, read, float(printed[-1]) if printed else wall)


def spread(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """Median, with minimum and maximum."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f}–{high:.{digits}f})"


def median(runs: Sequence[Measured], what: str) -> float:
    return float(statistics.median(getattr(r, what) for r in runs))
