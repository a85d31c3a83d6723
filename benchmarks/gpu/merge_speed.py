"""identify and fuse on checkpoints of 0.4B and 1.1B parameters, made here, by 1 to 16 threads as far as cores go."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from step import Skip, Step, cores, need, run

TASKS = 2
BYTES = 2  # of an element in bf16
SIZES = {"tiny": 4.3e6, "0.1B": 0.13e9, "0.4B": 0.41e9, "1.1B": 1.1e9}
THREADS = (1, 2, 4, 8, 16)


def work(step: Step) -> None:
    need("numba", "xxhash", "safetensors", "cpift.method.identify", "cpift.method.fuse")
    place = step.scratch / "merge"
    try:
        _sizes(step, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sizes(step: Step, place: Path) -> None:
    small = "tiny"
    _once(_make(place / "warm-up", small), place, 1)  # compiles
    if step.tiny:
        _measure(step, place, small)
        return
    began = time.monotonic()
    _make(place, "0.1B")
    making = (time.monotonic() - began) / SIZES["0.1B"]  # seconds a parameter
    seconds = sum(_once(_make(place, "0.1B"), place, cores())) / SIZES["0.1B"]
    for size in ("0.4B", "1.1B"):
        need_seconds = (making + 2 * seconds) * SIZES[size]
        need_bytes = (TASKS + 2) * BYTES * SIZES[size] * 1.1
        if need_seconds > step.left():
            step.record.leave_out(
                size, f"it would take {need_seconds:.0f} s to make and measure; {step.left():.0f} are left"
            )
        elif need_bytes > shutil.disk_usage(place).free:
            step.record.leave_out(size, f"it needs {need_bytes / 1e9:.0f} GB of disk in the scratch folder")
        else:
            _measure(step, place, size)
            shutil.rmtree(place / size, ignore_errors=True)


def _make(place: Path, size: str) -> list[Path]:
    import torch
    from synthetic import make

    made: list[Path] = make(place / size, size, torch.bfloat16, TASKS)
    return made


def _measure(step: Step, place: Path, size: str) -> None:
    """From the most threads down: the slowest comes last, and is left out where the time is short."""
    began = time.monotonic()
    folders = _make(place, size)
    made = time.monotonic() - began
    nbytes = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    step.record.add(
        f"{size}: making the checkpoints", made, "s", f"{len(folders)} of them, {nbytes / 1e9:.1f} GB in bf16"
    )
    counts = [count for count in THREADS if count <= cores()]
    last = 0.0
    for count in reversed(counts):
        what = f"{size}, {count} thread{'s' if count > 1 else ''}"
        if 2.2 * last > step.left():
            step.record.leave_out(what, "the time was up")
            continue
        identify, fuse = _once(folders, place, count)
        last = identify + fuse
        step.record.add(f"{what}: identify", identify, "s", f"{nbytes / 1e9 / identify:.2f} GB/s")
        step.record.add(f"{what}: fuse", fuse, "s")


def _once(folders: list[Path], place: Path, threads: int) -> tuple[float, float]:
    """Seconds of identify() and of fuse() with its regions."""
    from cpift import fuse, identify

    base, *tuned = folders
    tasks: dict[str, Any] = {folder.name: folder for folder in tuned}
    out = place / "fused"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    regions = identify(base, tasks, threads=threads)
    between = time.perf_counter()
    fuse(base, tasks, out, regions=regions, threads=threads)
    ends = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    if any(region.count == 0 for region in regions.values()):
        raise Skip("a region came out empty")
    return between - began, ends - between


if __name__ == "__main__":
    run(work)
