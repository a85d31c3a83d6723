"""Growth with the number of parameters and of tasks, and adapters in the place of whole checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bench import HEAD, Bench, size_of
from measure import Measured
from synthetic import make_adapters

if TYPE_CHECKING:
    from run import Sizes

DISTINCT = 2  # tasks that have files of their own; the others are links to them, so that all stays in memory


def growth(bench: Bench, sizes: Sizes, mergekit: Path | None) -> None:
    """Size by tasks: one run each after one of each size; the files have just been written, and are in memory."""
    bench.say("\n## Growth with parameters and tasks (bfloat16)\n")
    bench.say(
        f"Beyond {DISTINCT} tasks the files are links to the first ones, so that all stays in memory. One run each.\n"
    )
    bench.say("| size | tasks | GB read | identify s | identify GB | fuse s | fuse GB |\n|---|---|---|---|---|---|---|")
    for size in sizes.growth:
        if bench.left <= 0:
            bench.say(f"| {size} | | | not in the part's time | | | |")
            continue
        base, *tasks = bench.checkpoints(size, "bfloat16", DISTINCT)
        bench.once(bench.fuse([base, tasks[0]]))  # the first of an architecture asks transformers whether it is whole
        for count in sizes.tasks:
            folders = [base, *tasks[:count]]
            for number in range(len(folders), count + 1):
                link = base.parent / f"task{number}"
                if not link.exists():
                    link.symlink_to(tasks[number % DISTINCT])
                folders.append(link)
            a = bench.once(bench.identify(folders))
            b = bench.once(bench.fuse(folders))
            cells = " | ".join(_cell(taken) for taken in (a, b))
            bench.say(f"| {size} | {count} | {size_of(folders) / 1e9:.1f} | {cells} |")
        bench.drop(size, "bfloat16")


def _cell(taken: Measured | None) -> str:
    return "not in the part's time | " if taken is None else f"{taken.wall:.2f} | {taken.private / 1e9:.2f}"


def adapters(bench: Bench, sizes: Sizes, mergekit: Path | None) -> None:
    """Three LoRA adapters of rank 16 on all linear layers, read as base + B·A, beside three whole checkpoints."""
    base, *tasks = bench.checkpoints(sizes.small, "bfloat16")
    loras = make_adapters(base.parent, sizes.small, len(tasks))
    entries = {
        "identify, whole": bench.identify([base, *tasks]),
        "identify, adapters": bench.identify(loras, base=base),
        "fuse, whole": bench.fuse([base, *tasks]),
        "fuse, adapters": bench.fuse(loras, base=base),
    }
    found = bench.in_turn(entries)
    bench.say(f"\n## Adapters of rank 16 in the place of whole checkpoints ({sizes.small}, three tasks)\n")
    bench.say(HEAD)
    for name, runs in found.items():
        bench.row(name, runs)
    bench.drop(sizes.small, "bfloat16")
    shutil.rmtree(base.parent, ignore_errors=True)
