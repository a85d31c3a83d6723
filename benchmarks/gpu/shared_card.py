"""``cpift compare`` with several seeds side by side on one card, ended when the time is up; what is done by then is kept.

As a script: python shared_card.py RECIPE OUT --budget B --jobs N --reference METHOD --methods … --seeds …
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import write_whole
from step import Step, cores

POLL = 2.0  # seconds


@dataclass(frozen=True)
class Comparison:
    """What ``cpift compare`` is asked for.

    Args:
        recipe: the file.
        out: folder of the comparison.
        methods: in the order in which they are wanted.
        seeds: each with each method.
        budget: equal_tokens, paper or incremental.
        reference: the method that the others are set against.
        jobs: seeds side by side.
    """

    recipe: Path
    out: Path
    methods: Sequence[str]
    seeds: Sequence[int]
    budget: str
    reference: str
    jobs: int = 1

    def command(self) -> list[str]:
        """Of the process that works on it."""
        seeds = [str(seed) for seed in self.seeds]
        options = ["--budget", self.budget, "--jobs", str(self.jobs), "--reference", self.reference]
        lists = ["--methods", *self.methods, "--seeds", *seeds]
        return [sys.executable, "-u", __file__, str(self.recipe), str(self.out), *options, *lists]

    def so_far(self) -> Any:
        """The record of the methods and seeds that are done; None before the first."""
        from cpift import Recipe
        from cpift.compare.jobs import jobs_of
        from cpift.compare.record import Record, read_result

        recipe = Recipe.load(self.recipe)
        wanted = jobs_of(self.methods, self.seeds, [self.budget])
        if not any(read_result(recipe, self.out, job) for job in wanted):
            return None
        return Record(recipe, self.out, wanted, self.reference).write()


def watch(step: Step, comparison: Comparison, seconds: float) -> None:
    """Run it for some seconds at most; after each result the table is written anew.

    Raises:
        RuntimeError: it failed; what was done before is kept.
    """
    before, until = list(step.record.measures), time.monotonic() + seconds
    process = subprocess.Popen(comparison.command())
    count = -1
    try:
        while process.poll() is None and time.monotonic() < until:
            time.sleep(min(POLL, max(0.05, until - time.monotonic())))
            now = _finished(comparison.out)
            if now != count:
                count = now
                show(step, before, comparison)
    finally:
        ended = process.poll() is not None
        if not ended:
            process.send_signal(signal.SIGINT)  # it ends its workers
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    show(step, before, comparison)
    if not ended:
        step.record.leave_out("the other seeds and methods", "the time was up; called again, it resumes")
    elif process.returncode:
        raise RuntimeError(f"cpift compare ended with exit code {process.returncode}")


def _finished(out: Path) -> int:
    return sum(1 for _ in (out / "results").glob("**/*.json"))


def show(step: Step, before: Sequence[Any], comparison: Comparison) -> None:
    """The comparison's table, in place of an earlier one, and as a page beside its outcomes."""
    from cpift.compare.table import markdown
    from cpift.metrics import described, mean_unit

    found = comparison.so_far()
    if found is None:
        return
    step.record.measures[:] = before
    metrics = {task: entry["metric"] for task, entry in found["tasks"].items()}
    unit = mean_unit(metrics.values())
    for method, row in found["summary"][comparison.budget].items():
        each = [
            f"{task} {abs(cell['mean']) * described(metrics[task]).unit.scale:.3g}"
            for task, cell in row["tasks"].items()
            if cell["mean"] is not None
        ]
        sd = f"± {row['mean']['sd'] * unit.scale:.2g}, " if row["mean"].get("sd") is not None else ""
        note = f"{sd}{row['seeds']} of {len(comparison.seeds)} seeds; {', '.join(each)}; {row['tokens']:,.0f} tokens"
        mean = row["mean"]["mean"]
        step.record.add(method, None if mean is None else abs(mean) * unit.scale, unit.short, note)
    write_whole(comparison.out / "table.md", markdown(found) + "\n")


def default_jobs(step: Step, cuda: bool) -> int:
    """Seeds side by side: small models leave a card idle most of the time."""
    return 1 if step.tiny or not cuda else max(1, min(8, cores() // 2))


def main(arguments: Sequence[str] | None = None) -> int:
    """The process that works on a comparison."""
    from cpift import Recipe
    from cpift.compare import compare
    from cpift.console.reporter import Reporter
    from cpift.distributed.engine import Engine
    from cpift.distributed.local import Local

    class SharedCard(Local):
        """As many worker processes as wanted on one card; the package's own engine gives each a card of its own."""

        def __init__(self, jobs: int) -> None:
            Engine.__init__(self, jobs, max(1, cores() // jobs))
            self._idle, self._busy = [], {}

    class Printed(Reporter):
        def message(self, text: str) -> None:
            print(text, flush=True)

        def warning(self, text: str) -> None:
            print(f"warning: {text}", flush=True)

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    given = parser.parse_args(arguments)
    engine = SharedCard(given.jobs) if given.jobs > 1 else None
    compare(
        Recipe.load(given.recipe), given.out, given.methods, given.seeds, [given.budget],
        reference=given.reference, engine=engine, reporter=Printed(),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
