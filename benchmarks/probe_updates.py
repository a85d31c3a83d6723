"""What probes kept as updates in bf16 do to regions and to the fused model.

python benchmarks/probe_updates.py BASE PROBE PROBE …: folders with fp32 weights; prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.updates import FILE, write_updates
from cpift.method.fuse import fuse
from cpift.method.identify import identify

PERCENTS = ("1", "10", "30")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("probes", type=Path, nargs="+")
    args = parser.parse_args()
    base = open_checkpoint(args.base)
    with tempfile.TemporaryDirectory() as scratch:
        whole = {probe.name: probe for probe in args.probes}
        kept = {name: Path(scratch) / name for name in whole}
        for name, folder in kept.items():
            folder.mkdir()
            write_updates(base, open_checkpoint(whole[name]), folder)
            (folder / "config.json").write_bytes((whole[name] / "config.json").read_bytes())
        size = sum((folder / FILE).stat().st_size for folder in kept.values())
        print(f"bytes: {size / sum(open_checkpoint(probe).nbytes for probe in whole.values()):.3f} of the weights")
        print("| probe | region | Jaccard with that of fp32 weights |\n|---|---|---|")
        regions = {}
        for percent in PERCENTS:
            ours, theirs = identify(args.base, kept, percent), identify(args.base, whole, percent)
            regions[percent] = ours, theirs
            for name in whole:
                print(f"| {name} | {percent} % | {theirs[name].jaccard(ours[name]):.4f} |", flush=True)
        outs = {}
        for way, tuned, side in (("updates", kept, 0), ("weights", whole, 1)):
            outs[way] = Path(scratch) / f"fused-{way}"
            fuse(args.base, tuned, outs[way], regions=regions["1"][side])
        print(f"fused: |difference| / |update of the fused model| {difference(base, outs):.5f}")


def difference(base: object, outs: dict[str, Path]) -> float:
    """Norm of the difference of two fused models, of the norm of the update of the second."""
    first, second, origin = open_checkpoint(outs["updates"]), open_checkpoint(outs["weights"]), base
    apart = moved = 0.0
    for name in second.tensors:
        a, b, o = (c.raw(name).astype(np.float64) for c in (first, second, origin))  # type: ignore[attr-defined]
        apart += float(((a - b) ** 2).sum())
        moved += float(((b - o) ** 2).sum())
    return float((apart / moved) ** 0.5)


if __name__ == "__main__":
    main()
