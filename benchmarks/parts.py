"""Where identify and fuse spend their time: python benchmarks/parts.py SCRATCH BASE TASK …; prints Markdown tables.

Seconds are summed over threads; the processor's are beside the clock's, which holds waiting (for the interpreter's
lock, the disk, the other thread) too. Parts that lie within another are indented.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cpift.checkpoint.safetensors
import cpift.checkpoint.writer
import cpift.kernels.native
import cpift.method.candidates
import cpift.method.fuse
import cpift.method.fusion.block
import cpift.method.fusion.coefficients
import cpift.method.fusion.stream
import cpift.method.identify

LOOPS = SimpleNamespace(**{name: cpift.kernels.native.loop(name) for name in cpift.kernels.native.LOOPS})
cpift.kernels.native.__dict__["loop"] = lambda name: getattr(LOOPS, name)  # so that a part can be timed by its name

PARTS = {
    "identify": [
        ("guess the first bound", cpift.method.identify, "_first_bounds"),
        ("blocks", cpift.method.identify, "_scan"),
        ("— read into the cache", LOOPS, "read_into"),
        ("— scan updates (subtract, compare)", LOOPS, "scan"),
        ("collect candidates", cpift.method.candidates.Candidates, "add"),
        ("cut to k, unpack positions", cpift.method.candidates.Candidates, "take"),
    ],
    "fuse": [
        ("blocks, Gram matrices", cpift.method.fusion.stream, "block_gram"),
        ("— map pages", cpift.checkpoint.safetensors, "map_ahead"),
        ("— Gram matrices (multiply)", LOOPS, "add_gram"),
        ("blocks, sums", cpift.method.fusion.stream, "fused_block"),
        ("— sum and round (multiply)", LOOPS, "combine"),
        ("write", cpift.checkpoint.writer.Shard, "write"),
        ("sync to the disk", os, "fsync"),
    ],
}


def timed(function: Callable[..., Any], found: list[float], lock: threading.Lock) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        result = function(*args, **kwargs)
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        with lock:
            found[0] += wall
            found[1] += cpu
        return result

    return wrapper


def main() -> None:
    scratch, *folders = map(Path, sys.argv[1:])
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    tasks = {folder.name: folder for folder in folders[1:]}
    for what, parts in PARTS.items():
        call: Callable[[], Any] = lambda: cpift.method.identify.identify(folders[0], tasks, threads=threads)  # noqa: E731
        if what == "fuse":
            call = lambda: cpift.method.fuse.fuse(folders[0], tasks, scratch, threads=threads)  # noqa: E731
        shutil.rmtree(scratch, ignore_errors=True)
        call()
        shutil.rmtree(scratch, ignore_errors=True)
        sums: dict[str, list[float]] = {name: [0.0, 0.0] for name, _, _ in parts}
        lock, kept = threading.Lock(), [(place, attribute, getattr(place, attribute)) for _, place, attribute in parts]
        for name, place, attribute in parts:
            setattr(place, attribute, timed(getattr(place, attribute), sums[name], lock))
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        for place, attribute, function in kept:
            setattr(place, attribute, function)
        shutil.rmtree(scratch, ignore_errors=True)
        print(f"\nWhere `{what}()` spends its time, {threads} threads, seconds summed over threads:\n")
        print("| part | by the clock | by the processor |\n|---|---|---|")
        for name, (a, b) in sums.items():
            print(f"| {name} | {a:.2f} | {b:.2f} |")
        print(f"| the whole call (clock: once, not summed) | {wall:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
