"""The tables of the archive, anew from raw outcomes, with intervals over seeds; and which differences are no longer sure.

python benchmarks/recompute.py > docs/results/archive-tables.md
The files of raw outcomes hold the intervals of a percentile bootstrap, which were published first; they are too narrow.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from cpift.compare.statistics import adjusted, difference, forgetting, summary
from cpift.compare.table import markdown
from cpift.metrics.comparison import ComparisonRecord, MethodDifference

RESULTS = Path(__file__).parents[1] / "docs" / "results"
THREE = "backbone.from=multi_task,fuse.space=updates,refine.data=mixed"
SHORT = {
    f"{THREE},probe.steps=10,backbone.epochs=1.0,refine.examples_per_task=32,fuse.weight=0.1,refine.training.learning_rate=1.0e-4": "same sample",
    THREE: "three changes",
}  # fmt: skip
HEAD = """# The archive's tables, recomputed

Made by `python benchmarks/recompute.py` from the raw outcomes in this folder. Intervals are Student's, over seeds; ± is one standard
deviation. p-values are adjusted by Holm's method within a table. Settings in a method's name are changes to the recipe;
*three changes* and *same sample* stand for those that [the archive](archive.md) explains. What is wrong with these comparisons
stands there.
"""


def raw(name: str) -> ComparisonRecord:
    """What `cpift compare` wrote."""
    data: ComparisonRecord = json.loads(gzip.decompress((RESULTS / f"{name}.comparison.json.gz").read_bytes()))
    return data


def anew(old: ComparisonRecord) -> ComparisonRecord:
    """The same outcomes with today's statistics."""
    tasks, reference, budgets = old["tasks"], old["reference"], old["budgets"]
    record: Any = {**old, "summary": {}, "differences": {}}
    for budget, methods in budgets.items():
        special = methods.get("single_task")
        record["summary"][budget] = {m: summary(results, tasks, special) for m, results in methods.items()}
        record["differences"][budget] = adjusted(
            [
                cast(
                    MethodDifference,
                    {"method": m, "against": reference, **difference(results, methods[reference], tasks)},
                )
                for m, results in methods.items()
                if m != reference and reference in methods
            ]
        )
    record["forgetting"] = {m: forgetting(r, tasks) for m, r in budgets.get("incremental", {}).items()}
    new: ComparisonRecord = record
    return new


def turned(name: str, old: ComparisonRecord, new: ComparisonRecord) -> Iterator[str]:
    """Differences of the mean whose first interval left zero out, and whose interval over seeds holds it."""
    for budget, differences in new["differences"].items():
        before = {d["method"]: d.get("mean") for d in old["differences"][budget]}
        for entry in differences:
            then, now = before.get(entry["method"]), entry.get("mean")
            if then and now and not then["low"] <= 0 <= then["high"] and now["low"] <= 0 <= now["high"]:
                yield (
                    f"- {name}, {budget}: `{short(entry['method'])}` minus `{entry['against']}` {100 * now['difference']:+.1f} "
                    f"({100 * now['low']:+.1f} … {100 * now['high']:+.1f}); published as {100 * then['low']:+.1f} … "
                    f"{100 * then['high']:+.1f}"
                )


def short(text: str) -> str:
    """With names for the variants that have one."""
    for settings, label in SHORT.items():
        text = text.replace(f":{settings}", f", {label}")
    return text


def main() -> None:
    """Print the page."""
    names = sorted(file.name.partition(".comparison")[0] for file in RESULTS.glob("*.comparison.json.gz"))
    records = {name: raw(name) for name in names}
    news = {name: anew(record) for name, record in records.items()}
    print(HEAD)
    print("## No longer sure\n")
    print("Published as beyond noise; the interval over seeds holds zero:\n")
    for name in names:
        for line in turned(name, records[name], news[name]):
            print(line)
    for name in names:
        print(f"\n## {name}\n\nCommand: [{name}](outcomes.md#{name}).")
        print(short(markdown(news[name])))


if __name__ == "__main__":
    main()
