"""Freezing under FSDP2, on gloo processes: positions are mapped to each rank's shard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import preloaded
import pytest
import torch
import worker
from test_freezing import bits, some_region
from tiny import uneven
from tiny_run import one_thread

from cpift.checkpoint.reader import open_checkpoint


def launch(out: Path, processes: int) -> dict:
    """What the first rank leaves."""
    preloaded.call_ranks(processes, worker.main, out)
    return torch.load(out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One process, without sharding."""
    out = tmp_path_factory.mktemp("alone") / "one"
    with one_thread():
        worker.main(out)
    return torch.load(out)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_a_sharded_region_keeps_every_bit(tmp_path: Path, alone: dict, processes: int) -> None:
    """Frozen elements are those on entry, each held by one rank; weights, losses and norm are those of one process."""
    sharded = launch(tmp_path / "many", processes)
    network = uneven()
    region, before = some_region(network), bits(network)
    assert any(p.shape[0] % processes for p in network.parameters())
    held, changed = sharded["counts"].unbind(1)
    assert (int(held.sum()), int(changed.sum())) == (region.count, 0)
    assert 0 < int(held.min()) <= int(held.max()) < region.count
    assert torch.allclose(sharded["losses"], alone["losses"], atol=1e-5)
    assert sharded["norm"] == pytest.approx(alone["norm"], rel=1e-4)
    for name, value in sharded["weights"].items():
        flat = value.numpy().reshape(-1)
        frozen = np.zeros(flat.size, bool)
        frozen[region.positions[name]] = True
        same = flat.view(np.int32) == before[name]
        assert same[frozen].all(), name
        assert same[~frozen].mean() < 0.2, name
        assert np.allclose(flat, alone["weights"][name].numpy().reshape(-1), atol=2e-3), name
    saved = open_checkpoint(tmp_path / "many-saved")
    assert set(saved.tensors) == set(sharded["weights"])
    for name, value in sharded["weights"].items():
        assert np.array_equal(saved.raw(name), value.numpy().reshape(-1)), f"{name}, as saved from all shards"
