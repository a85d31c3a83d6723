"""Freezing under DeepSpeed's ZeRO, two gloo processes on CPU. DeepSpeed is installed by hand: see docs/deepspeed.md."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_fsdp2 import launch

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_freezing import bits, some_region
from tiny import uneven

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]
WORKER = Path(__file__).with_name("worker_deepspeed.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same steps without DeepSpeed, in one process."""
    return launch(tmp_path_factory.mktemp("alone") / "one", 0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes saw, by case."""
    out = tmp_path_factory.mktemp("deepspeed") / "two"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*launcher, str(WORKER), str(out)], capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(out)
    return found


@pytest.mark.parametrize("case", ["zero1", "zero2", "zero3", "zero2-bf16", "zero3-bf16"])
def test_a_region_keeps_every_bit(cases: dict[str, Any], alone: dict[str, Any], case: str) -> None:
    """In the fp32 weights and in the model's; each element is held once; losses and norm are those of one process."""
    seen, network = cases[case], uneven()
    assert "error" not in seen, seen["error"]
    region, start, half = some_region(network), bits(network), "bf16" in case
    held, changed = seen["counts"].unbind(1)
    assert (int(held.sum()), int(changed.sum())) == (region.count, 0)
    assert 0 < int(held.min()) <= int(held.max()) < region.count
    for name, positions in region.positions.items():
        before, after, model, later = (
            seen[which][name].reshape(-1) for which in ("before", "weights", "model", "later")
        )
        frozen = np.zeros(after.numel(), bool)
        frozen[positions] = True
        same = after.numpy().view(np.int32) == before.numpy().view(np.int32)
        assert same[frozen].all(), name
        assert same[~frozen].mean() < 0.2, name
        assert torch.equal(model, after.to(model.dtype)), f"{name}: the model has other weights than the optimizer"
        assert (later != after).numpy()[frozen].mean() > 0.8, f"{name}: frozen after the end"
        if not half:
            assert (after.numpy().view(np.int32) == start[name])[frozen].all(), name
            assert np.allclose(after, alone["weights"][name].reshape(-1), atol=2e-3), name
    assert torch.allclose(seen["losses"], alone["losses"], atol=3e-2 if half else 1e-5)
    assert seen["norm"] == pytest.approx(alone["norm"], rel=2e-2 if half else 1e-4)


def test_another_optimizer_than_zeros_is_refused(cases: dict[str, Any]) -> None:
    """The inner one would freeze the model's weights, which are made anew from the fp32 ones."""
    assert {seen["refused"] for seen in cases.values()} == {
        "freeze: DeepSpeed trains these parameters; use freeze(model, region, engine.optimizer)"
    }
