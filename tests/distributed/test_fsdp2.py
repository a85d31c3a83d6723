"""Freezing under FSDP2, on gloo processes: positions are mapped to each rank's shard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import model
from test_freezing import bits, some_region

WORKER = Path(__file__).with_name("worker.py")


def launch(out: Path, processes: int) -> dict:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(out)], capture_output=True, text=True, env=env, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.mark.parametrize("processes", [2, 4])
def test_a_sharded_region_keeps_every_bit(tmp_path: Path, processes: int) -> None:
    """Frozen elements are those on entry, each held by one rank; weights, losses and norm are those of one process."""
    alone, sharded = launch(tmp_path / "one", 0), launch(tmp_path / "many", processes)
    network = model("llama")
    region, before = some_region(network), bits(network)
    assert sharded["counts"].tolist() == [region.count, 0]
    assert torch.allclose(sharded["losses"], alone["losses"], atol=1e-5)
    assert sharded["norm"] == pytest.approx(alone["norm"], rel=1e-4)
    for name, value in sharded["weights"].items():
        flat = value.numpy().reshape(-1)
        positions = region.positions[name]
        assert np.array_equal(flat.view(np.int32)[positions], before[name][positions])
        assert not np.array_equal(flat.view(np.int32), before[name])
        assert np.allclose(flat, alone["weights"][name].numpy().reshape(-1), atol=2e-3)
