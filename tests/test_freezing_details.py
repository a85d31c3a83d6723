"""What freezing leaves behind, odd values in every type, and what either half of it alone would not do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from checkpoints import CONFIGS, model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_freezing import OPTIMIZERS, bits, check, plant, some_region, train
from torch import nn

from cpift.method.freeze import freeze, packed, unpacked
from cpift.method.region import Region


def held(network: nn.Module, region: Region, before: dict[str, np.ndarray]) -> bool:
    """Is every frozen element what it was, to the bit?"""
    after = bits(network)
    return all(np.array_equal(after[n][p], before[n][p]) for n, p in region.positions.items())


@pytest.mark.parametrize("kind", CONFIGS)
def test_everything_at_once(kind: str) -> None:
    """Clipping, accumulation, autocast and momentum from before together, odd values frozen, in every architecture."""
    network = model(kind)
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    train(network, optimizer, 2, seed=1)
    region = some_region(network)
    plant(network, region)
    before = bits(network)
    with freeze(network, region, optimizer) as frozen:
        train(network, optimizer, 5, accumulate=2, clip=True, autocast=True)
        assert (frozen.count, frozen.changed()) == (region.count, 0)
    check(before, network, region)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_minus_zero_and_subnormals_in_every_type(dtype: torch.dtype) -> None:
    """Written back as bits, compared as bits."""
    network = nn.Linear(4, 4, bias=False).to(dtype)
    tiny = torch.finfo(dtype).smallest_normal / 2
    with torch.no_grad():
        network.weight.view(-1)[:3] = torch.tensor([-0.0, tiny, -tiny], dtype=dtype)
    before = network.weight.detach().clone()
    kind = torch.int64 if dtype == torch.float64 else torch.int16
    region = Region({"weight": np.arange(3, dtype=np.int32)}, 16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    with freeze(network, region, optimizer) as frozen:
        network(torch.ones(2, 4, dtype=dtype)).sum().backward()
        optimizer.step()
        assert frozen.changed() == 0
        assert torch.equal(network.weight.view(-1)[:3].view(kind), before.view(-1)[:3].view(kind))
        assert torch.all(network.weight.view(-1)[3:] != before.view(-1)[3:])
        with torch.no_grad():
            network.weight.view(-1)[0] = 0.0  # equal as a number, another bit
        assert frozen.changed() == 1


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_share_takes_one_bit_an_element(
    share: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk by chunk, also where the last one is no whole byte; beside it the frozen values alone are kept."""
    monkeypatch.setattr("cpift.method.freeze._CHUNK", 64)
    network = nn.Linear(13, 17, bias=False).to(dtype)
    positions = np.sort(np.random.default_rng(1).choice(221, math.ceil(221 * share), replace=False)).astype(np.int32)
    before = network.weight.detach().clone().view(-1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    with freeze(network, Region({"weight": positions}, 221), optimizer) as frozen:
        (part,) = frozen._parts
        assert part.mask.nbytes == 28
        assert part.values.numel() == frozen.count == len(positions)
        network(torch.ones(2, 13, dtype=dtype)).sum().backward()
        free = np.setdiff1d(np.arange(221), positions)
        assert network.weight.grad is not None
        assert not network.weight.grad.view(-1)[torch.from_numpy(positions)].any()
        assert network.weight.grad.view(-1)[torch.from_numpy(free)].all()
        optimizer.step()
        after = network.weight.detach().view(-1)
        assert frozen.changed() == 0
        assert np.array_equal(np.flatnonzero((after == before).numpy()), positions)
        after[int(positions[-1])] += 1
        assert frozen.changed() == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_mask_is_packed_as_numpy_packs_it(mask: list[bool]) -> None:
    bits = packed(torch.tensor(mask))
    assert bits.tolist() == np.packbits(mask, bitorder="little").tolist()
    assert unpacked(bits)[: len(mask)].tolist() == mask


def test_no_hook_is_left() -> None:
    """Neither on a parameter nor on the optimizer, and no gradient is cleared any more."""
    network = model("llama")
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    region = some_region(network)
    with freeze(network, region, optimizer):
        train(network, optimizer, 1)
    assert not any(p._post_accumulate_grad_hooks for p in network.parameters())
    assert not optimizer._optimizer_step_post_hooks
    ids = torch.arange(24).reshape(2, 12)
    network(input_ids=ids, labels=ids).loss.backward()
    name = "model.norm.weight"
    gradient = dict(network.named_parameters())[name].grad
    assert torch.any(gradient.view(-1)[torch.as_tensor(region.positions[name], dtype=torch.int64)] != 0)


def test_a_gradient_from_before_entry_does_not_count() -> None:
    """A backward pass made before the context takes no part in the clipping norm of what is frozen."""
    network = nn.Linear(4, 4, bias=False)
    network(torch.ones(1, 4)).sum().backward()
    region = Region({"weight": np.arange(16, dtype=np.int32)}, 16)
    with freeze(network, region, torch.optim.SGD(network.parameters(), lr=0.1)):
        assert float(torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)) == 0.0


def test_writing_back_alone_spoils_the_clipping_norm() -> None:
    """With values written back and no gradient cleared, what is frozen still eats the norm; freeze prevents it."""
    norms = []
    for cleared in (False, True):
        network = model("llama")
        region = some_region(network, 0.5)
        optimizer = OPTIMIZERS["adamw"](network.parameters())
        ids = torch.arange(24).reshape(2, 12)
        if cleared:
            with freeze(network, region, optimizer):
                network(input_ids=ids, labels=ids).loss.backward()
                norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), 1e9)))
        else:
            network(input_ids=ids, labels=ids).loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), 1e9)))
    assert norms[1] < 0.95 * norms[0]


def test_one_region_within_another() -> None:
    """Contexts nest; the outer one goes on when the inner one ends."""
    network = model("llama")
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    outer, inner = some_region(network, seed=1), some_region(network, seed=2)
    before = bits(network)
    with freeze(network, outer, optimizer):
        with freeze(network, inner, optimizer):
            train(network, optimizer, 2)
            assert held(network, outer | inner, before)
        train(network, optimizer, 2)
    assert held(network, outer, before)
    assert not held(network, inner, before)


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_a_tied_pair_is_one_tensor(kind: str) -> None:
    """Counted once, under the input embedding's name; the output embedding keeps the same elements."""
    network = model(kind)
    name = next(n for n, p in network.named_parameters() if p is network.get_input_embeddings().weight)
    region = Region({name: np.arange(0, 3072, 7, dtype=np.int32)}, 1)
    before = bits(network)[name]
    optimizer = OPTIMIZERS["adamw"](network.parameters())
    with freeze(network, region, optimizer) as frozen:
        train(network, optimizer, 2)
        assert frozen.count == region.count
    head = network.get_output_embeddings().weight
    assert head is network.get_input_embeddings().weight
    after = head.detach().numpy().reshape(-1).view(np.int32)
    assert np.array_equal(after[::7], before[::7])
    assert not np.array_equal(after, before)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=st.integers(0, 999), kind=st.sampled_from(sorted(OPTIMIZERS)), clip=st.booleans())
def test_any_set_of_parameters(data: st.DataObject, seed: int, kind: str, clip: bool) -> None:
    """Several parameters of random shapes, some not in the region, every optimizer: no frozen bit changes."""
    shapes = data.draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4))
    torch.manual_seed(seed)
    network = nn.ParameterDict({f"p{i}": nn.Parameter(torch.randn(s)) for i, s in enumerate(shapes)})
    whole = some_region(network, data.draw(st.floats(0.05, 1.0)), seed)
    kept = data.draw(st.lists(st.sampled_from(sorted(whole.positions)), min_size=1, unique=True))
    region = Region({n: whole.positions[n] for n in sorted(kept)}, whole.total)
    optimizer = OPTIMIZERS[kind](network.parameters())
    before = bits(network)
    with freeze(network, region, optimizer) as frozen:
        for _ in range(3):
            sum((p.square().sum() + p.sum() for p in network.values()), torch.tensor(0.0)).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        assert frozen.changed() == 0
    assert held(network, region, before)
