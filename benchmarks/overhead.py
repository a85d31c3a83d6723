"""Where a run's time went: python benchmarks/overhead.py RUN. Its parts are read from the stages' own records."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def parts(run: Path) -> dict[str, float]:
    """Seconds by part; ``selection, grouping, fusion`` and ``other`` are what cpift itself costs."""
    found = dict.fromkeys(
        ["convert the base", "load models", "train", "evaluate", "save models", "selection, grouping, fusion", "other"],
        0.0,
    )
    for file in sorted(run.glob("stages/**/stage.json")):
        facts, kind = json.loads(file.read_text())["facts"], file.relative_to(run / "stages").parts[0]
        if kind == "00-base":
            found["convert the base"] += facts["seconds"]
        elif kind == "07-evaluate":
            found["evaluate"] += facts["seconds"]
        elif "train_seconds" in facts:
            found["load models"] += facts["load_seconds"]
            found["train"] += facts["train_seconds"]
            found["save models"] += facts["save_seconds"]
        elif kind in ("02-identify", "03-group", "05-fuse"):
            found["selection, grouping, fusion"] += facts["seconds"]
    total = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found["whole run"] = next(event["seconds"] for event in reversed(total) if event["event"] == "run")
    found["other"] = found["whole run"] - sum(v for k, v in found.items() if k != "whole run")
    return found


if __name__ == "__main__":
    table = parts(Path(sys.argv[1]))
    print("| part | seconds | share |\n|---|---|---|")
    for name, seconds in table.items():
        print(f"| {name} | {seconds:.1f} | {seconds / table['whole run']:.1%} |")
