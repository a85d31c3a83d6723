"""One method minus another, from raw outcomes: any pair that the tables of docs/results/archive.md do not set side by side.

python benchmarks/differences.py docs/results/NAME.comparison.json.gz FIRST SECOND
Prints, for each budget that has both, the difference of the mean and of each task with its 95 % interval, in points (for
a task scored by loss, times 100 nats, less being better). Where tasks arrive one after the other: also what the old tasks,
and the new one, gain by an arrival with the first method more than with the second.
"""

from __future__ import annotations

import argparse
import gzip
import json
from statistics import fmean
from typing import Any

from cpift.compare.statistics import Results, difference
from cpift.metrics.comparison import Difference


def at_arrivals(results: Results, old: bool) -> Results:
    """Each task at each arrival as a task of its own, whose items are what they gained by it."""
    found: dict[str, Any] = {}
    for seed, result in results.items():
        arrivals, scores = result["arrivals"], {}
        for i in range(1, len(arrivals)):
            before, after = arrivals[i - 1]["items"], arrivals[i]["items"]
            for task in [a["task"] for a in arrivals[:i]] if old else [arrivals[i]["task"]]:
                items = [x - y for x, y in zip(after[task], before[task], strict=True)]
                scores[f"{i}/{task}"] = {"metric": "exact_match", "score": fmean(items), "items": items}
        found[seed] = {"scores": scores}
    return found


def gained(first: Results, second: Results, old: bool) -> Difference:
    """First minus second of :func:`at_arrivals`, each task at each arrival alike, with its interval."""
    mine, theirs = at_arrivals(first, old), at_arrivals(second, old)
    names = next(iter(mine.values()))["scores"]
    rows = {name: len(score["items"]) for name, score in names.items()}
    return difference(mine, theirs, {name: {"metric": "exact_match", "rows": rows[name]} for name in names})["mean"]


def _points(entry: Difference) -> str:
    low, middle, high = 100 * entry["low"], 100 * entry["difference"], 100 * entry["high"]
    return f"{middle:+.1f} ({low:+.1f} … {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("file", "first", "second"):
        parser.add_argument(name)
    given = parser.parse_args()
    with gzip.open(given.file) as file:
        data: dict[str, Any] = json.load(file)
    shared = {budget: m for budget, m in data["budgets"].items() if given.first in m and given.second in m}
    if not shared:
        parser.error(
            f"no budget has both; there are {', '.join(sorted({n for m in data['budgets'].values() for n in m}))}"
        )
    for budget, methods in shared.items():
        first, second = methods[given.first], methods[given.second]
        found = difference(first, second, data["tasks"])
        print(f"{budget}: mean {_points(found['mean'])}, {found['wins']}–{found['ties']}–{found['losses']}")
        for task, entry in found["tasks"].items():
            print(f"  {task} {_points(entry)}")
        if budget == "incremental":
            print(f"  old tasks, at each arrival {_points(gained(first, second, old=True))}")
            print(f"  the new task {_points(gained(first, second, old=False))}")


if __name__ == "__main__":
    main()
