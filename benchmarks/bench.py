"""What each part of the benchmark uses: commands run in turn within a part's time limit, and the table's lines."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from measure import Measured, run, spread
from synthetic import make

HERE = Path(__file__).parent
CPIFT = [sys.executable, "-m", "cpift.cli"]
PEERS = [sys.executable, str(HERE / "peers.py")]
PERCENT = "1"
KEPT = "\n<!-- what follows is not of make bench, which leaves it as it is -->\n"
HEAD = "| what | wall s, median (min–max) | processor s | peak private memory GB | note |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Entry:
    """A command that is run in turn with others.

    Attributes:
        command: the program and its arguments.
        out: a folder that it writes, removed before each run.
        rounds: in how many rounds it takes part; slow peers in fewer.
        warm_up: run once more at first, to compile and to fill the cache.
    """

    command: Sequence[str]
    out: Path | None = None
    rounds: int = 3
    warm_up: bool = True


@dataclass
class Bench:
    """Settings of the whole, and what was printed so far."""

    scratch: Path
    repeat: int
    threads: int
    out: Path
    lines: list[str] = field(default_factory=list)
    ends: float = float("inf")  # of the part that is running, by the clock of time.perf_counter
    failed: bool = False  # a part
    kept: str = ""  # what others wrote at the end of the page

    def __post_init__(self) -> None:
        before = self.out.read_text(encoding="utf-8") if self.out.is_file() else ""
        self.kept = before[before.index(KEPT) :] if KEPT in before else ""

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)
        self.out.write_text("\n".join(self.lines) + "\n" + self.kept, encoding="utf-8")

    @property
    def left(self) -> float:
        """Seconds left to the part."""
        return self.ends - time.perf_counter()

    def part(self, limit: float, work: Callable[[], None]) -> None:
        """Run one part, which looks at :attr:`left`; what it cannot do in time is named, not waited for.

        One that fails is named, too, and the next one runs.
        """
        began, self.ends = time.perf_counter(), time.perf_counter() + limit
        try:
            work()
        except (Exception, SystemExit) as error:
            self.failed = True
            self.say(f"\nThe part failed: {type(error).__name__}: {' '.join(str(error).split())[-300:]}")
            traceback.print_exc()
        self.say(f"\n({time.perf_counter() - began:.0f} s; limit {limit:.0f} s)")

    def checkpoints(self, size: str, dtype: str, tasks: int = 3) -> list[Path]:
        return make(self.scratch / f"{size}-{dtype}", size, getattr(torch, dtype), tasks)

    def drop(self, size: str, dtype: str) -> None:
        shutil.rmtree(self.scratch / f"{size}-{dtype}", ignore_errors=True)

    def in_turn(self, entries: Mapping[str, Entry]) -> dict[str, list[Measured | None]]:
        """Run all of them round by round, so that a slow minute of the machine meets all alike.

        A command that is not likely to end in the part's time is left out; one that was begun and did not is None.
        """
        found: dict[str, list[Measured | None]] = {name: [] for name in entries}
        longest = dict.fromkeys(entries, 0.0)  # the warm-up included
        for turn in range(0 if any(e.warm_up for e in entries.values()) else 1, self.repeat + 1):
            for name, entry in entries.items():
                if (not turn and not entry.warm_up) or turn > entry.rounds or None in found[name]:
                    continue
                if self.left <= longest[name]:
                    continue
                if entry.out is not None:
                    shutil.rmtree(entry.out, ignore_errors=True)
                taken = run(entry.command, self.threads, limit=self.left)
                longest[name] = max(longest[name], taken.wall if taken else 0.0)
                if turn:
                    found[name].append(taken)
        return found

    def once(self, entry: Entry) -> Measured | None:
        """One run, where the part has time left."""
        if self.left <= 0:
            return None
        if entry.out is not None:
            shutil.rmtree(entry.out, ignore_errors=True)
        return run(entry.command, self.threads, limit=self.left)

    def output(self, what: str, command: Sequence[str | Path]) -> str | None:
        """What a command prints; None, and a line that says so, where it does not end in the part's time."""
        env = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        try:
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env=env, timeout=max(self.left, 0.1)
            )
        except subprocess.TimeoutExpired:
            self.say(f"\n{what}: not in the part's time.")
            return None
        return done.stdout.strip()

    def row(self, name: str, runs: Sequence[Measured | None], note: str = "") -> None:
        whole = [r for r in runs if r is not None]
        if not whole:
            self.say(f"| {name} | not in the part's time | | | {note} |")
            return
        memory = max(r.private for r in whole) / 1e9
        self.say(
            f"| {name} | {spread([r.wall for r in whole])} | {spread([r.cpu for r in whole])} | {memory:.2f} | {note} |"
        )

    def identify(self, folders: Sequence[Path], *more: str, base: Path | None = None, rounds: int = 3) -> Entry:
        out = self.scratch / "regions"
        arguments = self.arguments(folders, base)
        return Entry([*CPIFT, "identify", *arguments, "--percent", PERCENT, "--out", str(out), *more], out, rounds)

    def fuse(self, folders: Sequence[Path], *more: str, base: Path | None = None) -> Entry:
        out = self.scratch / "fused"
        return Entry([*CPIFT, "fuse", *self.arguments(folders, base), "--out", str(out), *more], out)

    def arguments(self, folders: Sequence[Path], base: Path | None = None) -> list[str]:
        """Of ``identify`` and ``fuse``: the first folder is the base, where none is given."""
        tuned = folders if base else folders[1:]
        tasks = [f"--tuned={folder.name}={folder}" for folder in tuned]
        return ["--base", str(base or folders[0]), *tasks, "--threads", str(self.threads)]


def size_of(folders: Sequence[Path]) -> int:
    """Bytes of the weights."""
    return sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))


def ratios(slow: Sequence[Measured | None], fast: Sequence[Measured | None], what: str = "wall") -> str:
    """Round by round, how many times one took what the other took: median, minimum and maximum."""
    pairs = [
        getattr(a, what) / getattr(b, what) for a, b in zip(slow, fast, strict=False) if a is not None and b is not None
    ]
    if not pairs:
        return "not measured"
    return f"{statistics.median(pairs):.1f} ({min(pairs):.1f}–{max(pairs):.1f}) ×"
