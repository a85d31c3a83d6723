"""Optimizers that move weights outside ``step``, or wrap another: written back there too, or an error at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from checkpoints import model
from datasets import Dataset
from safetensors.numpy import load_file
from test_freezing import bits, some_region, train
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.method.freeze import freeze
from cpift.method.freeze_hooks import chain
from cpift.method.region import Region
from cpift.train.fine_tune import fine_tune
from cpift.train.freeze_callback import FreezeCallback
from cpift.train.spec import TrainSpec


class ScheduleFree(torch.optim.Optimizer):
    """SGD as the package schedulefree has it: weights y are trained, x are used; z is kept. ``train``, ``eval`` swap."""

    def __init__(self, parameters: Any, lr: float = 0.05, beta: float = 0.9, decay: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta, "decay": decay, "k": 0, "train_mode": True})

    def eval(self) -> None:
        self._swap(to_train=False)

    def train(self) -> None:
        self._swap(to_train=True)

    @torch.no_grad()
    def _swap(self, to_train: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == to_train:
                continue
            for p in group["params"]:
                if "z" in self.state[p]:
                    z, beta = self.state[p]["z"], group["beta"]
                    p.lerp_(z, 1 - beta if to_train else 1 - 1 / beta)
            group["train_mode"] = to_train

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weight = 1 / (group["k"] + 1)
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                gradient = p.grad + group["decay"] * p
                p.lerp_(z, weight)
                p.add_(gradient, alpha=group["lr"] * (group["beta"] * (1 - weight) - 1))
                z.sub_(gradient, alpha=group["lr"])
            group["k"] += 1


class Lookahead(torch.optim.Optimizer):
    """A torch optimizer by name only: it was never made as one, so its step calls no hooks."""

    def __init__(self, base: torch.optim.Optimizer, every: int = 2) -> None:
        self.base_optimizer, self.every, self.count = base, every, 0
        self.param_groups, self.defaults = base.param_groups, base.defaults
        self.slow = [p.detach().clone() for group in base.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base_optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base_optimizer.step()
        self.count += 1
        if self.count % self.every == 0:
            fast = [p for group in self.base_optimizer.param_groups for p in group["params"]]
            for slow, p in zip(self.slow, fast, strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow + 1e-3)  # as where slow weights were taken before the region was written


def _changed(before: dict[str, np.ndarray], network: Any, region: Region) -> int:
    after = bits(network)
    return sum(int(np.count_nonzero(after[n][p] != before[n][p])) for n, p in region.positions.items())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_schedule_free_optimizer_keeps_the_region_in_both_modes(wrapped: bool) -> None:
    """After each train() and eval(), by accelerate's wrapper as well; the rest is swapped as it should be."""
    network = model("llama")
    optimizer: Any = ScheduleFree(network.parameters())
    train(network, optimizer, 2)  # z and y are apart
    if wrapped:
        optimizer = Accelerator(cpu=True).prepare_optimizer(optimizer)
    region, before = some_region(network), bits(network)
    with freeze(network, region, optimizer) as frozen:
        for _ in range(2):
            optimizer.train()
            assert (_changed(before, network, region), frozen.changed()) == (0, 0)
            train(network, optimizer, 2)
            trained = bits(network)
            optimizer.eval()
            assert (_changed(before, network, region), frozen.changed()) == (0, 0)
            assert any(np.any(now != trained[name]) for name, now in bits(network).items())
    optimizer.train()
    assert _changed(before, network, region)  # the hooks are gone, also from train() and eval()


def test_a_wrapper_that_moves_weights_after_the_step_of_the_one_within() -> None:
    """Lookahead, though its own step calls no hooks."""
    network = model("llama")
    optimizer = Lookahead(torch.optim.AdamW(network.parameters(), lr=1e-2))
    region, before = some_region(network), bits(network)
    with freeze(network, region, optimizer) as frozen:
        train(network, optimizer, 4)
        assert frozen.changed() == 0
    assert _changed(before, network, region) == 0
    assert "step" not in vars(optimizer)
    train(network, optimizer, 2)
    assert _changed(before, network, region)


def test_the_chain_of_wrappers() -> None:
    """From the outermost in; a scheduler or a ring of references is no optimizer to follow."""
    inner = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    outer = Lookahead(inner)
    assert chain(outer) == [outer, inner]
    assert chain(Accelerator(cpu=True).prepare_optimizer(inner))[1:] == [inner]
    outer.base_optimizer = outer  # type: ignore[assignment]
    assert chain(outer) == [outer]


class _Average(TrainerCallback):
    """Puts an average of the weights in place at the end, as callbacks for EMA and SWA do."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = [p.detach().clone() for p in kwargs["model"].parameters()]
        self.kept = [0.9 * a + 0.1 * b for a, b in zip(self.kept or now, now, strict=True)]

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for p, average in zip(kwargs["model"].parameters(), self.kept, strict=True):
            p.copy_(average + 1e-3)


def _trainer(folder: Path, region: Region, network: Any, **options: Any) -> Trainer:
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 8
    settings = TrainingArguments(str(folder), max_steps=3, use_cpu=True, report_to="none", disable_tqdm=True)
    callbacks = [*options.pop("callbacks", []), FreezeCallback(region)]
    return Trainer(network, settings, train_dataset=Dataset.from_list(rows), callbacks=callbacks, **options)


def test_the_callback_raises_where_frozen_elements_changed(tmp_path: Path) -> None:
    """An average that another callback puts in place is none of the optimizer's doing."""
    network = model("llama")
    region = some_region(network)
    with pytest.raises(CpiftError, match=rf"\d+ of {region.count} frozen elements changed"):
        _trainer(tmp_path, region, network, callbacks=[_Average()]).train()


def test_a_trainer_with_a_schedule_free_optimizer(tmp_path: Path) -> None:
    """The Trainer itself calls train() before each step."""
    network = model("llama")
    region, before = some_region(network), bits(network)
    optimizer = ScheduleFree(network.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    _trainer(tmp_path, region, network, optimizers=(optimizer, scheduler)).train()
    assert _changed(before, network, region) == 0
    assert any(np.any(now != before[name]) for name, now in bits(network).items())


def test_what_is_saved_are_the_weights_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fine_tune with optim: schedule_free_sgd, whose package is stood in for: saved in eval mode, the region as it was."""
    made: list[ScheduleFree] = []

    class Sgd(ScheduleFree):
        def __init__(self, parameters: Any, lr: float, **_: Any) -> None:
            super().__init__(parameters, lr)
            made.append(self)

    stand_in: Any = ModuleType("schedulefree")
    stand_in.SGDScheduleFree = stand_in.AdamWScheduleFree = Sgd
    monkeypatch.setitem(sys.modules, "schedulefree", stand_in)
    monkeypatch.setattr("transformers.trainer_optimizer.is_schedulefree_available", lambda *_: True)
    base, name = tiny.base(tmp_path / "base"), "model.norm.weight"
    core = Region({name: np.arange(0, 32, 3, dtype=np.int32)}, 32)
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", 8, 0)]
    settings = {"optim": "schedule_free_sgd", "per_device_train_batch_size": 4, "bf16": False, "learning_rate": 0.1}
    fine_tune(base, rows, tmp_path / "out", TrainSpec(settings, 3, 0), frozen=core)
    saved, before = (load_file(folder / "model.safetensors")[name] for folder in (tmp_path / "out", base))
    assert np.array_equal(saved[::3].view(np.int32), before[::3].view(np.int32))
    assert not np.array_equal(saved, before)
    (optimizer,) = made
    (trained,) = [p for p in optimizer.param_groups[1]["params"] if np.array_equal(p.detach().numpy(), saved)]
    assert not optimizer.param_groups[1]["train_mode"]
    optimizer.train()  # now with the weights that were trained on
    assert not np.array_equal(trained.detach().numpy(), saved)


def test_a_region_on_parameters_that_need_no_gradient_is_refused() -> None:
    """Before any step: by name, and what to do."""
    network = model("llama")
    region = some_region(network)
    network.model.embed_tokens.requires_grad_(False)
    with (
        pytest.raises(CpiftError, match=r"model\.embed_tokens\.weight needs no gradient"),
        freeze(network, region, torch.optim.AdamW(network.parameters())),
    ):
        pass
