"""A frozen element never changes by one bit, whatever the optimizer; a free one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from checkpoints import CONFIGS, model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.optimization import Adafactor

from cpift.method.freeze import freeze
from cpift.method.region import Region

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, weight_decay=0.1),
    "adafactor torch": lambda p: torch.optim.Adafactor(p, lr=1e-2, weight_decay=0.1),
    "adafactor transformers": lambda p: Adafactor(
        p, lr=1e-2, weight_decay=0.1, scale_parameter=True, relative_step=False
    ),
}


def some_region(network: nn.Module, share: float = 0.1, seed: int = 0) -> Region:
    """A random part of every parameter."""
    rng = np.random.default_rng(seed)
    positions = {}
    for name, parameter in network.named_parameters():
        count = max(1, int(parameter.numel() * share))
        positions[name] = np.sort(rng.choice(parameter.numel(), count, replace=False)).astype(np.int32)
    shapes = {n: tuple(p.shape) for n, p in network.named_parameters()}
    return Region(positions, sum(p.numel() for p in network.parameters()), shapes=shapes)


def bits(network: nn.Module) -> dict[str, np.ndarray]:
    return {n: p.detach().float().numpy().reshape(-1).view(np.int32).copy() for n, p in network.named_parameters()}


def plant(network: nn.Module, region: Region) -> None:
    """Values that a careless copy would change, at frozen positions of every parameter."""
    odd = torch.tensor([-0.0, 1e-41, -1e-41])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            index = torch.as_tensor(region.positions[name][:3], dtype=torch.int64)
            parameter.view(-1)[index] = odd[: len(index)].to(parameter.dtype)


def train(
    network: nn.Module,
    optimizer: Any,
    steps: int,
    *,
    accumulate: int = 1,
    clip: bool = False,
    autocast: bool = False,
    seed: int = 5,
) -> None:
    """Steps on random tokens."""
    torch.manual_seed(seed)
    for _ in range(steps):
        for _ in range(accumulate):
            ids = torch.randint(0, 96, (2, 12))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                network(input_ids=ids, labels=ids).loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


def check(before: dict[str, np.ndarray], network: nn.Module, region: Region) -> None:
    """Frozen elements are the same to the bit, free ones have moved in every tensor."""
    for name, after in bits(network).items():
        frozen = np.zeros(after.size, bool)
        frozen[region.positions[name]] = True
        assert np.array_equal(after[frozen], before[name][frozen]), name
        assert (after[~frozen] != before[name][~frozen]).mean() > 0.2 or after.size < 50, name


@pytest.mark.parametrize("way", ["plain", "clip", "accumulate", "autocast", "momentum from before", "accelerate"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_frozen_elements_keep_every_bit(kind: str, way: str) -> None:
    """Under every optimizer, with clipping, accumulation, autocast, momentum it had on entry, and accelerate's wrapper."""
    network = model("llama")
    optimizer: Any = OPTIMIZERS[kind](network.parameters())
    if way == "momentum from before":
        train(network, optimizer, 3, seed=1)
    if way == "accelerate":
        optimizer = Accelerator(cpu=True).prepare_optimizer(optimizer)
    region = some_region(network)
    plant(network, region)
    before = bits(network)
    with freeze(network, region, optimizer) as frozen:
        train(
            network,
            optimizer,
            5,
            accumulate=2 if way == "accumulate" else 1,
            clip=way == "clip",
            autocast=way == "autocast",
        )
        assert frozen.count == region.count
        assert frozen.changed() == 0
    check(before, network, region)


@pytest.mark.parametrize("way", ["clip", "accumulate", "autocast", "momentum from before"])
@pytest.mark.parametrize("kind", ["adamw", "sgd momentum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_most_of_a_model_is_frozen(kind: str, way: str, dtype: torch.dtype) -> None:
    """At 90 % the mask and copy keep every bit, count what is frozen, and see a change."""
    network = model("llama").to(dtype)
    optimizer: Any = OPTIMIZERS[kind](network.parameters())
    if way == "momentum from before":
        train(network, optimizer, 3, seed=1)
    region = some_region(network, 0.9)
    plant(network, region)
    before = bits(network)
    with freeze(network, region, optimizer) as frozen:
        train(
            network, optimizer, 5, accumulate=1 + (way == "accumulate"), clip=way == "clip", autocast=way == "autocast"
        )
        assert frozen.count == region.count
        assert frozen.changed() == 0
        check(before, network, region)
        name, parameter = next(iter(network.named_parameters()))
        parameter.data.view(-1)[int(region.positions[name][4])] += 1
        assert frozen.changed() == 1


def test_gradients_of_a_mostly_frozen_model_are_zero_before_clipping() -> None:
    """Or the frozen elements would eat the norm."""
    network = model("llama")
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    region = some_region(network, 0.9)
    with freeze(network, region, optimizer):
        ids = torch.randint(0, 96, (2, 12))
        network(input_ids=ids, labels=ids).loss.backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            assert not parameter.grad.view(-1)[torch.as_tensor(region.positions[name], dtype=torch.int64)].any()
            assert parameter.grad.any()


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture(kind: str) -> None:
    """Biases, Conv1D, tied embeddings: a tied pair is one tensor, frozen on both sides."""
    network = model(kind)
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    region, before = some_region(network), bits(network)
    with freeze(network, region, optimizer):
        train(network, optimizer, 3, clip=True)
    check(before, network, region)


def test_bf16_parameters() -> None:
    """Frozen in half precision, too."""
    network = model("llama").bfloat16()
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    region, before = some_region(network), bits(network)
    with freeze(network, region, optimizer) as frozen:
        train(network, optimizer, 3)
        assert frozen.changed() == 0
    after = bits(network)
    assert all(np.array_equal(after[n][p], before[n][p]) for n, p in region.positions.items())


def test_zeroed_gradients_alone_do_not_freeze() -> None:
    """What this library is for: with the gradient zeroed and nothing written back, AdamW moves what is frozen."""
    network = model("llama")
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    region, before = some_region(network), bits(network)
    for name, parameter in network.named_parameters():
        index = torch.as_tensor(region.positions[name], dtype=torch.int64)

        def clear(p: torch.Tensor, index: torch.Tensor = index) -> None:
            assert p.grad is not None
            p.grad.view(-1).index_fill_(0, index, 0)

        parameter.register_post_accumulate_grad_hook(clear)
    train(network, optimizer, 1)
    assert any(np.any(bits(network)[n][p] != before[n][p]) for n, p in region.positions.items())


def test_the_clipping_norm_counts_only_what_is_free() -> None:
    """As computed by hand from an unfrozen backward pass."""
    networks = model("llama"), model("llama")
    region = some_region(networks[0], 0.5)
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    with freeze(networks[0], region, OPTIMIZERS["adamw"](networks[0].parameters())):
        networks[0](input_ids=ids, labels=ids).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(networks[0].parameters(), 1e9)
    networks[1](input_ids=ids, labels=ids).loss.backward()
    total = 0.0
    for name, parameter in networks[1].named_parameters():
        gradient = parameter.grad.double().view(-1).clone()
        gradient[torch.as_tensor(region.positions[name], dtype=torch.int64)] = 0
        total += float(gradient.square().sum())
    assert float(norm) == pytest.approx(total**0.5, rel=1e-5)


def test_after_the_context_everything_moves_again() -> None:
    """The hooks are gone, also after an exception."""
    network = model("llama")
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    region = some_region(network)
    with pytest.raises(ZeroDivisionError), freeze(network, region, optimizer):
        raise ZeroDivisionError
    before = bits(network)
    train(network, optimizer, 2)
    assert all(np.any(bits(network)[n][p] != before[n][p]) for n, p in region.positions.items())


def test_tampering_is_counted() -> None:
    """changed() tells how many frozen elements are not what they were."""
    network = model("llama")
    region = some_region(network)
    name = "model.norm.weight"
    with freeze(network, region, OPTIMIZERS["adamw"](network.parameters())) as frozen:
        with torch.no_grad():
            dict(network.named_parameters())[name][int(region.positions[name][0])] += 1
        assert frozen.changed() == 1


@settings(deadline=None, max_examples=25)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), share=st.floats(0.05, 1.0), seed=st.integers(0, 99),
    lr=st.floats(1e-4, 1.0), decay=st.floats(0, 1), momentum=st.floats(0, 0.99), adam=st.booleans(),
)  # fmt: skip
def test_any_region_under_any_settings(
    shape: list[int], share: float, seed: int, lr: float, decay: float, momentum: float, adam: bool
) -> None:
    """Random shapes, regions, rates, decay and momentum: no frozen bit changes."""
    torch.manual_seed(seed)
    network = nn.Module()
    network.w = nn.Parameter(torch.randn(shape))
    settings_ = {"lr": lr, "weight_decay": decay}
    optimizer: Any = (
        torch.optim.AdamW([network.w], **settings_)
        if adam
        else torch.optim.SGD([network.w], momentum=momentum, **settings_)
    )
    region = some_region(network, share, seed)
    before = bits(network)["w"]
    with freeze(network, region, optimizer):
        for _ in range(3):
            (network.w.square().sum() + network.w.sum()).backward()
            optimizer.step()
    assert np.array_equal(bits(network)["w"][region.positions["w"]], before[region.positions["w"]])
