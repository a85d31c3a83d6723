"""Positions on disk become positions in memory as transformers' own loading and saving move the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from safetensors.numpy import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cpift.checkpoint.reader import open_checkpoint
from cpift.errors import CpiftError
from cpift.method.freeze import freeze, match_parameters
from cpift.method.memory_names import disk_names, region_in_memory
from cpift.method.region import Region


@pytest.fixture(scope="module", params=zoo.CONVERTED)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random values, each of which is there once."""
    return zoo.base(tmp_path_factory.mktemp(request.param) / "base", request.param)


def _region(base: Path, share: float = 0.2) -> Region:
    """A random part of every parameter on disk."""
    rng, checkpoint = np.random.default_rng(0), open_checkpoint(base)
    positions = {
        name: np.sort(rng.choice(t.size, max(1, int(t.size * share)), replace=False)).astype(np.int32)
        for name, t in checkpoint.tensors.items()
    }
    return Region(positions, checkpoint.total, shapes={name: t.shape for name, t in checkpoint.tensors.items()})


def _values(network: nn.Module, region: Region) -> np.ndarray:
    parameters = match_parameters(network, region)
    parts = [parameters[n].detach().numpy().reshape(-1)[p] for n, p in region.positions.items()]
    return np.sort(np.concatenate(parts))


def test_one_position_on_disk_is_one_in_memory(base: Path) -> None:
    """Tensor by tensor: the loaded model has the values of the file at the mapped positions."""
    network, region, stored = (
        AutoModelForCausalLM.from_pretrained(base),
        _region(base),
        load_file(base / "model.safetensors"),
    )
    for name, positions in region.positions.items():
        one = Region({name: positions}, region.total, shapes=region.shapes)
        mapped = region_in_memory(network, one)
        assert mapped.count == one.count
        assert np.array_equal(_values(network, mapped), np.sort(stored[name].reshape(-1)[positions]))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_the_saved_file_keeps_its_bits_at_the_positions_of_the_region(base: Path, wrap: Any, tmp_path: Path) -> None:
    """After steps of AdamW that move all else, and save_pretrained."""
    network, region = AutoModelForCausalLM.from_pretrained(base), _region(base)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    with freeze(wrap(network), region, optimizer) as frozen:
        for _ in range(2):
            sum((parameter * torch.randn_like(parameter)).sum() for parameter in network.parameters()).backward()
            optimizer.step()
        assert (frozen.count, frozen.changed()) == (region.count, 0)
    network.save_pretrained(tmp_path)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, positions in region.positions.items():
        same = before[name].reshape(-1).view(np.int32) == after[name].reshape(-1).view(np.int32)
        assert same[positions].all(), name
        assert not np.delete(same, positions).any(), name


def test_a_model_that_was_never_loaded_is_mapped_alike(base: Path) -> None:
    """Built from a configuration: transformers then converts as it does by default."""
    loaded, region = AutoModelForCausalLM.from_pretrained(base), _region(base)
    built = region_in_memory(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)), region)
    for name, positions in region_in_memory(loaded, region).positions.items():
        assert np.array_equal(built.positions[name], positions)


def test_names_of_memory_are_taken_as_they_are(base: Path) -> None:
    """A region made of a model's own parameters, not of files."""
    network = AutoModelForCausalLM.from_pretrained(base)
    own = {name: np.array([0], np.int32) for name, _ in network.named_parameters()}
    mapped = region_in_memory(network, Region(own, 1))
    assert {name: p.tolist() for name, p in mapped.positions.items()} == {name: [0] for name in own}


def test_a_tensor_of_another_shape_is_refused(base: Path) -> None:
    """Its positions would mean other elements."""
    network, region = AutoModelForCausalLM.from_pretrained(base), _region(base)
    name = next(n for n in region.positions if n not in dict(network.named_parameters()))
    wrong = Region({name: region.positions[name]}, region.total, shapes={name: (1, *region.shapes[name])})
    with pytest.raises(CpiftError, match=name.replace(".", r"\.")):
        region_in_memory(network, wrong)


@pytest.mark.parametrize("kind", [kind for kind in zoo.SUPPORTED if kind not in zoo.CONVERTED])
def test_where_nothing_is_converted_the_region_is_the_same_object(kind: str) -> None:
    """Nothing changes for the architectures that always worked."""
    network = zoo.network(kind)
    positions = {name: np.array([0], np.int32) for name, _ in network.named_parameters()}
    region = Region(positions, 1)
    assert region_in_memory(network, region) is region


def test_other_models_need_no_conversion() -> None:
    """Plain torch modules have the names of their checkpoints."""
    region = Region({"weight": np.array([0], np.int32)}, 4)
    assert disk_names(nn.Linear(2, 2)) is None
    assert region_in_memory(nn.Linear(2, 2), region) is region
