"""make bench: selection and fusion beside their peers, in under 20 minutes on 2 cores; writes docs/benchmarks.md.

Makes its checkpoints in --scratch (22 GB at the peak, removed as it goes). Each part has a time limit; what does not end
in it is named. --quick: all parts at tiny size, in seconds, to see that they work; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import growth
import side_by_side
import torch
from bench import HERE, Bench
from peers import mergekit_environment, mergekit_versions

Part = Callable[[Bench, "Sizes", Path | None], None]


class Sizes:
    """The shapes that a part takes, by what it needs them for."""

    def __init__(self, quick: bool) -> None:
        self.small, self.large = ("tiny", "tiny") if quick else ("0.4B", "1.1B")
        self.growth = ("tiny",) if quick else ("0.5B", "1.1B", "2.2B")
        self.tasks = (1, 2) if quick else (1, 3, 8)


def freezing(bench: Bench, sizes: Sizes, mergekit: Path | None) -> None:
    """What freezing costs of a training step."""
    printed = bench.output("Freezing", [sys.executable, HERE / "freeze_step.py", "4"])
    if printed is None:
        return
    found = json.loads(printed.splitlines()[-1])
    low, middle, high = found["step_seconds"]
    bench.say("\n## Freezing, a training step of a SmolLM2-135M-shaped model (8 × 64 tokens, bf16 autocast, AdamW)\n")
    bench.say(
        f"Step without freezing: {middle:.2f} s ({low:.2f}–{high:.2f}). Seconds spent in freezing, of each step's:"
    )
    bench.say("\n| region | median | min | max | steps compared pair by pair, median | bytes kept for an element |")
    bench.say("|---|---|---|---|---|---|")
    for way in ("1 %", "3 %", "30 %", "90 %"):
        (low, middle, high), paired, kept = found[way], found[f"{way} paired"], found[f"{way} bytes"]
        bench.say(f"| {way} | {middle:.2%} | {low:.2%} | {high:.2%} | {paired:+.1%} | {kept:.2f} |")


def regions(bench: Bench, sizes: Sizes, mergekit: Path | None) -> None:
    """Files of regions of a 7B model."""
    printed = bench.output("Regions of a 7B model", [sys.executable, HERE / "regions.py", bench.scratch / "7B"])
    if printed is not None:
        bench.say("\n## Regions of a 7B model, 1 %\n\n" + printed)


# The most important first: each with its limit in seconds, and whether --quick has it.
PARTS: tuple[tuple[Part, float, bool], ...] = (
    (side_by_side.small, 295, True),
    (side_by_side.large, 330, True),
    (side_by_side.single, 105, True),
    (growth.growth, 225, True),
    (growth.adapters, 70, True),
    (freezing, 75, False),
    (regions, 30, False),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=HERE.parent / "scratch" / "bench")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of an environment; by default one is made")
    parser.add_argument("--no-peers", action="store_true", help="leave out mergekit")
    names = [part.__name__ for part, _, _ in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one run, without peers")
    args = parser.parse_args(arguments)
    args.scratch.mkdir(parents=True, exist_ok=True)
    mergekit = None
    if not args.no_peers and not args.quick:
        mergekit = args.mergekit or mergekit_environment(args.scratch)
    bench = Bench(args.scratch, 1 if args.quick else args.repeat, args.threads, args.out)
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=HERE).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    bench.say(
        "# Benchmarks\n\nWhat these say, against the targets and why: [benchmarks-notes.md](benchmarks-notes.md).\n"
    )
    bench.say(
        f"`make bench` at commit {commit}: {args.threads} threads on {os.cpu_count()} cores ({platform.machine()}), "
        f"{memory:.0f} GiB; Python {platform.python_version()}, torch {torch.__version__}.\n"
        f"Beside it: {mergekit_versions(mergekit) if mergekit else 'no peer'}. Warm file cache; whole processes, start-up "
        f"included; load before: {os.getloadavg()[0]:.1f}."
    )
    began = time.perf_counter()
    sizes = Sizes(args.quick)
    for part, limit, quick in PARTS:
        if part.__name__ in args.only and (quick or not args.quick):
            bench.part(limit, partial(part, bench, sizes, mergekit))
    shutil.rmtree(args.scratch / "regions", ignore_errors=True)
    bench.say(f"\nThe whole took {(time.perf_counter() - began) / 60:.1f} minutes.")
    if bench.failed:
        raise SystemExit("a part failed; see above")


if __name__ == "__main__":
    main()
