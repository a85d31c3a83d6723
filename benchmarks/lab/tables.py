"""The tables of the laboratory's pages, from raw outcomes.

python benchmarks/lab/tables.py            prints all tables
python benchmarks/lab/tables.py --write    puts them into the pages, between their marks, and packs new outcomes
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))
from cpift.compare.units import over_units
from lab import tables_arrivals, tables_models, tables_probes, tables_smol
from lab.contrasts import RESULTS, accuracy, cells, shown
from lab.tuning import share_right


def findings() -> Iterator[str]:
    """The primary contrast of each experiment."""
    yield "| experiment | contrast | difference, points | p | units |\n|---|---|---|---|---|"
    for page, experiment, method, text in (
        ("e1", "e1-120", "average", "averaged with the model before minus replay, 64 kept rows"),
        ("e2", "e2-0", "freeze_10", "cores frozen at 10 % minus nothing protected, no kept rows"),
        ("e2", "e2-64", "inside_10", "only inside own core of 10 % minus nothing protected, 64 kept rows"),
        ("e2", "e2-16", "inside_10", "the same, 16 kept rows"),
    ):
        if not ready(experiment):
            continue
        values = accuracy(page, experiment)
        estimate = over_units([a - b for a, b in zip(values[method], values["plain"], strict=True)])
        assert estimate is not None
        yield f"| [{page.upper()}]({page}.md) | {text} | {shown(estimate)} | {estimate.p:.2g} | {estimate.freedom + 1} |"
    whole = tables_probes.specialists()
    top, drawn = ([100 * fmean(share_right(o[f"{k}/10.0"]) for o in w) for w in whole] for k in ("top", "random"))
    estimate = over_units([a - b for a, b in zip(top, drawn, strict=True)])
    if estimate is None:
        return
    yield (
        f"| [M1](m1.md) | top 10 % of a specialist's update minus 10 % at random, on the base | {shown(estimate)} | "
        f"{estimate.p:.2g} | {estimate.freedom + 1} |"
    )
    yield from tables_models.findings()
    if ready("smol"):
        yield from tables_smol.findings()


TABLES: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "e2-0": ("e2.md", lambda: tables_arrivals.e2(0)),
    "e2-64": ("e2.md", lambda: tables_arrivals.e2(64)),
    "e2-16": ("e2.md", lambda: tables_arrivals.e2(16)),
    "pareto": ("e2.md", tables_arrivals.pareto),
    "rows": ("e2.md", tables_arrivals.kept_rows),
    "e1-40": ("e1.md", lambda: tables_arrivals.e1(40)),
    "e1-120": ("e1.md", lambda: tables_arrivals.e1(120)),
    "m1": ("m1.md", tables_probes.m1),
    "m2": ("m2.md", tables_probes.m2),
    "findings": ("index.md", findings),
    **tables_models.TABLES,
    **tables_smol.TABLES,
}


def ready(name: str) -> bool:
    """Are the outcomes there of which a table is made?"""
    if name == "findings":
        return all(map(ready, ("e1-120", "e2-0", "e2-64", "m1")))
    if name == "rows":
        return ready("e2-0") and ready("e2-64")
    if name == "pareto":
        return all(map(ready, ("pareto-0", "pareto-64")))
    file = "e2" if name.startswith("pareto-") else name.split("-")[0]
    if not (RESULTS / f"{file}.jsonl.gz").exists():
        return False
    return file not in ("e1", "e2") or any(cell["experiment"] == name for cell in cells(file))


def main() -> None:
    """Print the tables, or write them into their pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--outcomes", type=Path, default=Path("scratch/lab"), help="where run.py has left them")
    args = parser.parse_args()
    if args.write:
        for name in ("e1", "e2", "m1", "m2", "s", "e3", "e4", "b1", "smol"):
            if (file := args.outcomes / f"{name}.jsonl").exists():
                data = gzip.compress(file.read_bytes(), mtime=0)
                (RESULTS / f"{name}.jsonl.gz").write_bytes(data)
    for name, (page, made) in TABLES.items():
        if not (RESULTS / page).exists() or not ready(name):
            continue
        text = "\n".join(made())
        if args.write:
            file = RESULTS / page
            marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.S)
            file.write_text(marks.sub(lambda m, t=text: f"{m[1]}{t}\n{m[2]}", file.read_text()))  # type: ignore[misc]
        else:
            print(f"\n## {name}\n\n{text}")


if __name__ == "__main__":
    main()
