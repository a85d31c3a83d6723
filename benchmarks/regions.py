"""Regions of a 7B model at 1 %: size of the file, time to save, load and compare. python benchmarks/regions.py SCRATCH"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from cpift.method.region import Region

LAYERS, PER_LAYER, TOTAL = 32, [4096 * 4096] * 4 + [4096 * 11008] * 3, 6_738_000_000


def region(seed: int) -> Region:
    """Random positions, 1 % of each parameter, shapes of LLaMA-2-7B without embeddings and norms."""
    rng = np.random.default_rng(seed)
    positions, negative, shapes = {}, {}, {}
    for layer in range(LAYERS):
        for i, size in enumerate(PER_LAYER):
            name = f"model.layers.{layer}.part{i}.weight"
            gaps = rng.integers(1, 200, size // 100)  # 1 % on average, sorted as they come
            places = np.cumsum(gaps)
            positions[name] = places[places < size].astype(np.int32)
            negative[name] = rng.integers(0, 2, len(positions[name])).astype(np.bool_)
            shapes[name] = (4096, size // 4096)
    return Region(positions, TOTAL, negative, shapes, percent="1")


def main() -> None:
    scratch = Path(sys.argv[1])
    scratch.mkdir(parents=True, exist_ok=True)
    files = []
    print("| what | result |\n|---|---|")
    for i in range(2):
        made = region(i)
        files.append(scratch / f"{i}.region.safetensors")
        began = time.perf_counter()
        made.save(files[i])
        if not i:
            size, seconds = files[i].stat().st_size / 1e6, time.perf_counter() - began
            print(f"| positions; file | {made.count:,}; {size:.0f} MB, saved in {seconds:.1f} s |")
    began = time.perf_counter()
    a, b = (Region.load(file) for file in files)
    print(f"| load two by memory map | {time.perf_counter() - began:.2f} s |")
    for name, call in (("overlap with signs (Jaccard)", a.overlap), ("union", a.__or__), ("intersection", a.__and__)):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            call(b)
            times.append(time.perf_counter() - began)
        print(f"| {name} | {sorted(times)[1]:.2f} s ({min(times):.2f}–{max(times):.2f}) |")
    for file in files:
        file.unlink()


if __name__ == "__main__":
    main()
