"""What numba gives: the compiled loops of fuse beside the same in plain numpy, in the same pipeline.

python benchmarks/compiled.py FOLDER     (a folder that benchmarks/synthetic.py has made)

Also what it costs: the size of its packages on disk, and the seconds to import it.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np

from cpift import fuse
from cpift.method.fusion import block, coefficients

Stored = np.ndarray[Any, Any]
PART = 2**16  # elements in work at a time: three float64 rows of it stay in the cache
TYPES: dict[int, Any] = {2: ctypes.c_uint16, 4: ctypes.c_float, 8: ctypes.c_double}


def _numbers(stored: Stored, kind: type) -> Stored:
    values = (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored
    result: Stored = values.astype(kind, copy=False)
    return result


def _at(address: int, itemsize: int, size: int) -> Stored:
    return np.ctypeslib.as_array((TYPES[int(itemsize)] * size).from_address(int(address)))


def add_gram(addresses: Stored, itemsizes: Stored, size: int, core: Any, start: int, total: Stored) -> int:
    stored = [_at(*place, size) for place in zip(addresses, itemsizes, strict=True)]
    rows = np.empty((len(stored), PART))
    for low in range(0, size, PART):
        part = rows[:, : min(PART, size - low)]
        for row, values in zip(part, stored, strict=True):
            row[:] = _numbers(values[low : low + PART], np.float64)
        part[1:] -= part[0]
        total += np.tril(part @ part.T)
    return 0


def combine(addresses: Stored, itemsizes: Stored, factors: Stored, out: Stored) -> None:
    stored = [_at(*place, len(out)) for place in zip(addresses, itemsizes, strict=True)]
    for low in range(0, len(out), PART):
        total = sum(f * _numbers(s[low : low + PART], np.float64) for f, s in zip(factors, stored, strict=True))
        if out.dtype != np.uint16:
            out[low : low + PART] = total
            continue
        bits = total.astype(np.float32).view(np.uint32)  # by way of float32: the compiled one rounds once
        out[low : low + PART] = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16


def all_finite(stored: Stored) -> bool:
    return bool(np.isfinite(_numbers(stored, np.float64 if stored.dtype == np.float64 else np.float32)).all())


def seconds(work: Callable[[], None], runs: int = 3) -> list[float]:
    taken = []
    for _ in range(runs + 1):  # the first one warms up
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return taken[1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    base, tuned = given.folder / "base", {p.name: p for p in sorted(given.folder.glob("task*"))}
    plain: list[tuple[ModuleType, dict[str, Any]]] = [
        (coefficients, {"add_gram": add_gram}), (block, {"combine": combine, "all_finite": all_finite}),
    ]  # fmt: skip

    def fuse_once() -> None:
        with tempfile.TemporaryDirectory(dir=given.folder) as place:
            fuse(base, tuned, Path(place) / "out", threads=given.threads)

    compiled = seconds(fuse_once)
    patches = [patch.multiple(module, **functions) for module, functions in plain]
    for one in patches:
        one.start()
    slow = seconds(fuse_once)
    a, b = statistics.median(compiled), statistics.median(slow)
    print(f"fuse: numba {a:.2f} s ({min(compiled):.2f}–{max(compiled):.2f}), "
          f"numpy {b:.2f} s ({min(slow):.2f}–{max(slow):.2f}), {b / a:.1f} ×")  # fmt: skip
    for package in ("numba", "llvmlite", "numpy", "torch"):
        size = sum(
            Path(str(f.locate())).stat().st_size for f in files(package) or [] if Path(str(f.locate())).is_file()
        )
        print(f"{package}: {size / 1e6:.0f} MB")
    spent = [
        float(subprocess.run(
            [sys.executable, "-c", "import time, numpy; t = time.perf_counter(); import numba; print(time.perf_counter() - t)"],
            capture_output=True, text=True, check=True).stdout)
        for _ in range(4)
    ]  # fmt: skip
    print(f"import numba: {statistics.median(spent[1:]):.2f} s")


if __name__ == "__main__":
    main()
