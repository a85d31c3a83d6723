"""Set ``cpift plan --measure`` beside the run that it foretells: peak memory and time, so many times, the median ratio.

    .venv/bin/python benchmarks/plan_check.py recipes/demo.yaml --times 3

Each time the plan is made anew, and the run goes into a new folder, which is removed. Exit code 1 where the median misses the target.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MEMORY, TIME = 0.15, 0.25  # how far the median ratio may be from 1


@dataclass(frozen=True)
class Pair:
    """Predicted and real: bytes and seconds."""

    memory: tuple[float, float]
    seconds: tuple[float, float]
    parts: dict[str, tuple[float, float]]


def check(recipe: Path, place: Path) -> Pair:
    """Plan, then run."""
    cpift = [sys.executable, "-m", "cpift.cli"]
    told = subprocess.run(
        [*cpift, "plan", str(recipe), "--measure", "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    plan = json.loads(told.stdout)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        out = Path(folder) / "out"
        began = time.perf_counter()
        process = subprocess.Popen([*cpift, "run", str(recipe), "--out", str(out)], stdout=subprocess.DEVNULL)
        _, code, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(code)
        if process.returncode:
            raise SystemExit(f"the run ended with exit code {process.returncode}")
        facts = [(f.parent.relative_to(out / "stages"), json.loads(f.read_text())["facts"]) for f in out.glob("stages/**/stage.json")]  # fmt: skip
    peak = max(usage.ru_maxrss * 1024, *(fact["peak_memory"] for _, fact in facts))
    real: dict[str, float] = {}
    for stage, fact in facts:
        kind = stage.parts[0][3:].replace("guard", "evaluate")
        real[kind] = real.get(kind, 0.0) + fact["seconds"]
    predicted = {"evaluate": plan["evaluate_seconds"]}
    for part in plan["stages"]:
        kind = part["stage"].split(" ")[0]
        predicted[kind] = predicted.get(kind, 0.0) + part["seconds"]
    parts = {kind: (predicted[kind], real.get(kind, 0.0)) for kind in predicted}
    parts["other"] = plan["other_seconds"], seconds - sum(real[kind] for kind in predicted if kind in real)
    return Pair((plan["memory"], peak), (plan["seconds"], seconds), parts)


def table(pairs: list[Pair]) -> str:
    """In Markdown, with the medians of the ratios."""
    lines = [
        "| | peak memory predicted, GB | real | ratio | time predicted, s | real | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, pair in enumerate(pairs, start=1):
        cells = [f"{pair.memory[0] / 1e9:.3f} | {pair.memory[1] / 1e9:.3f} | {ratio(pair.memory):.2f}"]
        cells.append(f"{pair.seconds[0]:.1f} | {pair.seconds[1]:.1f} | {ratio(pair.seconds):.2f}")
        lines.append(f"| {number} | {' | '.join(cells)} |")
    memory, seconds = medians(pairs)
    lines += [f"| median | | | **{memory:.2f}** | | | **{seconds:.2f}** |", "", "| part of the last run | predicted, s | real, s |", "|---|---|---|"]  # fmt: skip
    lines += [f"| {kind} | {told:.1f} | {real:.1f} |" for kind, (told, real) in pairs[-1].parts.items()]
    return "\n".join(lines)


def ratio(pair: tuple[float, float]) -> float:
    """Predicted to real."""
    return pair[0] / pair[1]


def medians(pairs: list[Pair]) -> tuple[float, float]:
    """Of the ratios of memory and of time."""
    return statistics.median(ratio(p.memory) for p in pairs), statistics.median(ratio(p.seconds) for p in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path("scratch"), help="where the runs go; ignored by git")
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    pairs: list[Pair] = []
    for _ in range(given.times):
        pairs.append(check(given.recipe, given.scratch))
        print(
            f"predicted to real: memory {ratio(pairs[-1].memory):.2f}, time {ratio(pairs[-1].seconds):.2f}",
            file=sys.stderr,
        )
    print(table(pairs))
    memory, seconds = medians(pairs)
    return 0 if abs(memory - 1) <= MEMORY and abs(seconds - 1) <= TIME else 1


if __name__ == "__main__":
    sys.exit(main())
