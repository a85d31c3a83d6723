"""fuse() reads each file once from a cold disk, and keeps to one tensor while it does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import write

import cpift.method.fusion.stream as stream
from cpift.checkpoint.stream import BLOCK
from cpift.method.fuse import fuse
from cpift.report import figures_fusion

SIZE = 3 * BLOCK + 17  # elements of a tensor; four blocks


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two tasks, of three tensors of several blocks each."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    base = {f"l{i}.weight": rng.standard_normal(SIZE, dtype=np.float32) for i in range(3)}
    tasks = [
        {n: a + np.float32(0.1) * a[::-1] for n, a in base.items()},
        {n: a * np.float32(1.1) for n, a in base.items()},
    ]
    return [write(folder / f"m{i}", weights) for i, weights in enumerate([base, *tasks])]


COUNT = """
import sys
from pathlib import Path
from cpift.method.fuse import fuse
def read():
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])
base, a, b, out, vector = sys.argv[1:]
before = read()
report = fuse(base, {"a": a, "b": b}, out, vector=vector)
print(read() - before, report["reads"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts by /proc/self/io")
@pytest.mark.parametrize(("vector", "reads"), [("tensor", 1), ("model", 2)])
def test_a_cold_disk_is_read_once(places: list[Path], tmp_path: Path, vector: str, reads: int) -> None:
    """At most 1.05 times the files' size, by the kernel's count; the report says how often the files were read."""
    files = [file for place in places for file in place.glob("*.safetensors")]
    subprocess.run([sys.executable, "-c", "import cpift.method.fuse"], check=True)  # its own files are warm
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *map(str, places), str(tmp_path / "o"), vector], capture_output=True, text=True, check=True
    )  # fmt: skip
    read, said = map(int, done.stdout.split())
    size = sum(file.stat().st_size for file in files)
    assert said == reads
    if read < size // 2:
        pytest.skip("this file system does not count what it reads")
    assert read <= 1.05 * size  # of a model this small the second read, too, is from memory


@pytest.mark.parametrize("threads", [1, 3])
def test_a_tensor_is_written_before_the_next_is_read_far(
    places: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Between the two looks at a block lies at most the rest of its tensor and the work ahead of the threads.

    So a checkpoint larger than memory is read once as well, as long as one tensor of all models fits.
    """
    order: list[tuple[str, str]] = []
    gram, fused = stream.block_gram, stream.fused_block
    monkeypatch.setattr(stream, "block_gram", lambda *a: (order.append(("read", a[1].name)), gram(*a))[1])
    monkeypatch.setattr(stream, "fused_block", lambda *a: (order.append(("write", a[1].name)), fused(*a))[1])
    fuse(places[0], {"a": places[1], "b": places[2]}, tmp_path / "o", threads=threads)
    assert len(order) == 2 * 3 * 4
    for i in range(3):
        first = order.index(("write", f"l{i}.weight"))
        later = [name for what, name in order[:first] if what == "read" and name > f"l{i}.weight"]
        assert len(later) <= 3 * threads + 1
    assert order[-1][0] == "write"


def test_one_vector_for_the_whole_model_reads_all_before_it_writes(
    places: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its coefficients depend on every tensor."""
    order: list[str] = []
    gram, fused = stream.block_gram, stream.fused_block
    monkeypatch.setattr(stream, "block_gram", lambda *a: (order.append("read"), gram(*a))[1])
    monkeypatch.setattr(stream, "fused_block", lambda *a: (order.append("write"), fused(*a))[1])
    report = fuse(places[0], {"a": places[1], "b": places[2]}, tmp_path / "o", vector="model")
    assert order == ["read"] * 12 + ["write"] * 12
    assert report["reads"] == 2
    assert len({tuple(t["coefficients"]) for t in report["tensors"].values()}) == 1
    facts: Any = SimpleNamespace(fusion=report, tasks=["a", "b"])
    assert "The checkpoints were read twice" in figures_fusion.said(facts)
