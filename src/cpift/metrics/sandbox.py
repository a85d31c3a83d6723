"""Runs a Python program that nobody has read: apart from the network and the files, within limits, then ended whole."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ENTRY = Path(__file__).with_name("sandbox_entry.py")
_NO_ISOLATION = 97  # exit code of the entry
_LOOK = 0.02  # seconds between two looks at the clock and the processes


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time, and of CPU time of each process.
        memory: address space of each process, in bytes.
        size: of a file, and of all files where isolated, in bytes.
        processes: at a time, threads included.
        output: bytes of output after which the program is ended.
    """

    seconds: int = 10
    memory: int = 1 << 30
    size: int = 16 << 20
    processes: int = 32
    output: int = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        code: its exit code; not zero where it was ended.
        output: standard output and errors together, at most ``Limits.output`` bytes.
    """

    code: int
    output: str


LIMITS = Limits()


def run_python(program: str, isolated: bool, limits: Limits = LIMITS) -> Outcome:
    """Run a program in a folder of its own, with a clean environment.

    Args:
        program: Python source.
        isolated: with namespaces of Linux: no network, no processes but its own, files read-only outside its folder.
        limits: what it may use.
    """
    numbers = [limits.memory, limits.size, limits.processes, limits.seconds]
    with tempfile.TemporaryDirectory(prefix="cpift-code-") as folder, tempfile.TemporaryFile() as source:
        source.write(program.encode("utf-8", "replace"))
        source.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_ENTRY), folder, "isolated" if isolated else "open", *map(str, numbers)],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            output, whole = _read(process, limits, watch=isolated and os.geteuid() == 0)
        finally:
            _end(process)
        return Outcome(process.returncode if whole else -signal.SIGKILL, output.decode("utf-8", "replace"))


def _read(process: subprocess.Popen[bytes], limits: Limits, watch: bool) -> tuple[bytes, bool]:
    """The output until the program has ended, and whether it ended by itself within the limits."""
    output, deadline = b"", time.monotonic() + limits.seconds
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline and len(output) < limits.output:
            if selector.select(_LOOK):
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    return output, _ended(process, deadline)
                output = (output + piece)[: limits.output]
            if watch and _processes_below(process.pid) > limits.processes:
                break
    return output, False


def _ended(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for a program that has closed its output."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _processes_below(entry: int) -> int:
    """Processes in the namespace that an entry has made: the limit on processes does not hold for root."""
    try:
        namespace = os.readlink(f"/proc/{entry}/ns/pid_for_children")
        if namespace == os.readlink("/proc/self/ns/pid"):
            return 0
    except OSError:
        return 0
    return sum(_namespace(other) == namespace for other in filter(str.isdigit, os.listdir("/proc")))


def _namespace(process: str) -> str | None:
    try:
        return os.readlink(f"/proc/{process}/ns/pid")
    except OSError:  # it has ended
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process group; in a namespace, all that was started there ends with its first process."""
    with suppress(ProcessLookupError, PermissionError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@cache
def isolation_problem() -> str | None:
    """Why programs cannot be isolated here, or None. A program that does nothing is run once to see."""
    if sys.platform != "linux":
        return "only Linux has the namespaces that keep it from the network and from files"
    outcome = run_python("", isolated=True)
    if outcome.code == 0:
        return None
    lines = outcome.output.strip().splitlines()
    return lines[-1] if outcome.code == _NO_ISOLATION and lines else f"a trial ended with exit code {outcome.code}"
