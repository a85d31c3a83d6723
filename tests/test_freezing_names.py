"""A region's names find the parameters they mean, through prefixes and wrappers, or are refused with the list."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model
from test_freezing import OPTIMIZERS, some_region
from torch import nn

from cpift.errors import CpiftError
from cpift.method.freeze import freeze, match_parameters
from cpift.method.region import Region

ONE = np.array([0], np.int32)


@pytest.mark.parametrize(("kind", "change"), [
    ("gpt2", lambda n: n.removeprefix("transformer.")), ("llama", lambda n: n.removeprefix("model.")),
    ("llama", lambda n: "base." + n), ("llama", lambda n: n),
])  # fmt: skip
def test_names_with_or_without_the_prefix(kind: str, change: Callable[[str], str]) -> None:
    """The base-model prefix is added or removed."""
    network = model(kind)
    region = some_region(network)
    other = Region({change(n): p for n, p in region.positions.items()}, region.total)
    with freeze(network, other, OPTIMIZERS["adamw"](network.parameters())) as frozen:
        assert frozen.count == region.count


def test_wrapped_models() -> None:
    """What torch.compile and DistributedDataParallel put before names does not matter."""
    network = model("llama")
    region = some_region(network)

    class Wrapper(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.add_module(name, network)

    for name in ("module", "_orig_mod"):
        with freeze(Wrapper(name), region, OPTIMIZERS["adamw"](network.parameters())) as frozen:
            assert frozen.count == region.count


def test_a_region_of_another_model_is_refused_with_the_list() -> None:
    """An unknown name, a position beyond the tensor, another shape."""
    network = model("llama")
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    one = np.array([0], np.int32)
    for wrong in (
        Region({"nope.weight": one}, 1),
        Region({"model.norm.weight": np.array([32], np.int32)}, 1),
        Region({"model.norm.weight": one}, 1, shapes={"model.norm.weight": (16, 2)}),
    ):
        with pytest.raises(CpiftError, match=next(iter(wrong.positions))), freeze(network, wrong, optimizer):
            pass


def test_real_wrappers() -> None:
    """torch.compile's module, and a name with both prefixes."""
    network = model("llama")
    region = some_region(network)
    compiled: Any = torch.compile(network, backend="eager")

    class Module(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.module = inner

    both: Any = torch.compile(Module(compiled), backend="eager")
    for wrapped in (compiled, Module(compiled), both):
        assert next(iter(wrapped.named_parameters()))[0].startswith(("_orig_mod.", "module."))
        found = match_parameters(wrapped, region)
        own = dict(network.named_parameters())
        assert all(found[n] is own[n] for n in region.positions)


@pytest.mark.parametrize("inner", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_a_layer_wrapped_by_itself(inner: str) -> None:
    """A wrapper's name may stand in the middle, as where one layer is compiled."""
    network = model("llama")
    region, own = some_region(network), dict(network.named_parameters())
    wrapper = nn.Module()
    wrapper.add_module(inner, network.model.layers[0])
    network.model.layers[0] = wrapper
    assert f"model.layers.0.{inner}.mlp.up_proj.weight" in dict(network.named_parameters())
    found = match_parameters(network, region)
    assert all(found[n] is own[n] for n in region.positions)


def test_all_that_is_missing_is_told() -> None:
    """The first five by name, and how many more; a flat parameter of FSDP1."""
    network = model("llama")
    wrong = Region({f"no.{i}.weight": ONE for i in range(7)}, 7)
    with pytest.raises(CpiftError) as told:
        match_parameters(network, wrong)
    assert all(f"no.{i}.weight" in str(told.value) for i in range(5))
    assert "and 2 more" in str(told.value)
    flat = nn.Module()
    flat._flat_param = nn.Parameter(torch.zeros(3))
    with pytest.raises(CpiftError, match="FSDP1"):
        match_parameters(flat, Region({"w": ONE}, 1))


@pytest.mark.parametrize("names", [["weight"], ["x.a.weight", "y.a.weight"]])
def test_a_name_that_fits_no_one_parameter_is_refused(names: list[str]) -> None:
    """Neither a guess between two parameters, nor two names for one."""
    two = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    with pytest.raises(CpiftError):
        match_parameters(two, Region(dict.fromkeys(names, ONE), 18))


def test_the_match_does_not_hang_on_the_hash_seed() -> None:
    """Ranks of one training are processes of their own: they must freeze the same, or refuse alike."""
    code = (
        "import numpy as np; from torch import nn; from cpift.errors import CpiftError\n"
        "from cpift.method.freeze import match_parameters; from cpift.method.region import Region\n"
        "m = nn.ModuleDict({k: nn.Linear(2, 2, bias=False) for k in 'abcdef'})\n"
        "try: f = match_parameters(m, Region({'weight': np.array([0], np.int32)}, 4))['weight']\n"
        "except CpiftError: print('refused')\n"
        "else: print([n for n, p in m.named_parameters() if p is f])\n"
    )
    told = set()
    for seed in ("0", "1", "2", "3"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        told.add(done.stdout)
    assert len(told) == 1
