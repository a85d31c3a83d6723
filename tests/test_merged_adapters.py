"""Backbone and refine stages that train an adapter: frozen positions keep every bit, in the forward pass and in what is written."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from cpift.checkpoint.reader import open_checkpoint
from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.method.region import Region
from cpift.recipe.adapter import Adapter
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.train.fine_tune import fine_tune
from cpift.train.merged_adapters import put_in
from cpift.train.spec import TrainSpec

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
ADAPTERS = [
    pytest.param(Adapter(r=4), id="lora"),
    pytest.param(Adapter(type="qlora", r=4), id="qlora", marks=needs_bitsandbytes),
]
SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-2}


def some_region(base: Path, share: float = 0.3) -> Region:
    """A share of every parameter, embeddings and norms included."""
    rng, made = np.random.default_rng(0), open_checkpoint(base)
    positions = {n: np.flatnonzero(rng.random(t.size) < share).astype(np.int32) for n, t in made.tensors.items()}
    return Region({n: p for n, p in positions.items() if len(p)}, made.total)


def some_steps(model: Any) -> torch.Tensor:
    """Train what is trained in three steps of AdamW; the rows."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    rows = torch.arange(24).view(4, 6)
    for _ in range(3):
        model(rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return rows


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_merged_and_unmerged_logits_are_the_same_bits(architecture: str, tmp_path: Path) -> None:
    base = adapters.base(tmp_path / "base", architecture)
    region = some_region(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    made = put_in(model, Adapter(r=3), region, seed=0)
    rows = some_steps(model)
    with torch.inference_mode():
        unmerged = model.eval()(rows).logits
    assert made.merge() == 0
    with torch.inference_mode():
        assert torch.equal(model(rows).logits, unmerged)
    model.save_pretrained(tmp_path / "out")
    before, after = open_checkpoint(base), open_checkpoint(tmp_path / "out")
    moved = 0
    for name, tensor in before.tensors.items():
        old, new = before.raw(name).view(np.int32), after.raw(name).view(np.int32)
        kept = np.zeros(tensor.size, bool)
        kept[region.positions[name]] = True
        assert np.array_equal(old[kept], new[kept]), name
        moved += int((old[~kept] != new[~kept]).sum())
    assert moved > 1000
    assert made.count == region.count


def test_autocast_uses_the_weight_that_is_written(tmp_path: Path) -> None:
    base = adapters.base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    made = put_in(model, Adapter(r=3), some_region(base), seed=0)
    adapters.noisy(p for p in model.parameters() if p.requires_grad)
    rows = torch.arange(24).view(4, 6)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        unmerged = model(rows).logits
        made.merge()
        assert torch.equal(model(rows).logits, unmerged)


def train(
    base: Path, out: Path, frozen: Region | None = None, training: dict[str, Any] | None = None, **more: Any
) -> dict[str, np.ndarray]:
    adapter = more.pop("adapter", Adapter(r=4))
    spec = TrainSpec({**SETTINGS, **(training or {})}, 4, 0, adapter=adapter, merge=True)
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", 20, 0)]
    trained = fine_tune(base, rows, out, spec, frozen=frozen, **more)
    assert (trained.frozen, trained.frozen_changed) == (frozen.count if frozen else 0, 0)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": True}], ids=["plain", "checkpointing"])
def test_a_training_writes_whole_weights_and_keeps_the_region(
    settings: dict[str, Any], adapter: Adapter, tmp_path: Path
) -> None:
    base = tiny.base(tmp_path / "base")
    region = some_region(base)
    after, before = (
        train(base, tmp_path / "out", region, settings, adapter=adapter),
        load_file(base / "model.safetensors"),
    )
    assert after.keys() == before.keys()
    for name, positions in region.positions.items():
        assert np.array_equal(
            before[name].ravel()[positions].view(np.int32), after[name].ravel()[positions].view(np.int32)
        )
    assert {n for n in before if not np.array_equal(before[n], after[n])} == {n for n in before if "_proj" in n}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_training_cut_off_resumes_to_the_same_bits(adapter: Adapter, tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def cut(event: Any) -> None:
        if event["step"] == 3:
            raise Cut

    base = tiny.base(tmp_path / "base")
    more: dict[str, Any] = {"training": {"save_steps": 2, "save_strategy": "steps"}, "frozen": some_region(base)}
    more["adapter"] = adapter
    whole = train(base, tmp_path / "whole", work=tmp_path / "w1", **more)
    with pytest.raises(Cut):
        train(base, tmp_path / "cut", work=tmp_path / "w2", tick=cut, **more)
    steps: list[int] = []
    resumed = train(base, tmp_path / "cut", work=tmp_path / "w2", tick=lambda e: steps.append(e["step"]), **more)
    assert steps == [3, 4]
    assert all(np.array_equal(whole[n], resumed[n]) for n in whole)


def test_a_run_by_adapters_throughout(tmp_path: Path) -> None:
    table = tiny.recipe(tmp_path, ("reverse", "upper"))
    table["probe"] = {"steps": 4, "adapter": {"r": 4}}
    table["backbone"] = {"adapter": {"r": 4}}
    table["refine"] = {"examples_per_task": 4, "adapter": {"type": "rslora", "r": 2}}
    run(Recipe.parse(table), tmp_path / "out")
    stages = tmp_path / "out/stages"
    groups = json.loads((stages / "03-group/groups.json").read_text())
    first = groups["groups"][groups["order"][0]][0]
    region = Region.load(stages / "02-identify" / first / "region.safetensors")
    before, after = open_checkpoint(stages / "06-refine/1"), open_checkpoint(stages / "06-refine/2")
    for name, positions in region.positions.items():
        assert np.array_equal(before.raw(name)[positions].view(np.int32), after.raw(name)[positions].view(np.int32))
    assert any(not np.array_equal(before.raw(n), after.raw(n)) for n in before.tensors)
    assert json.loads((stages / "06-refine/2/stage.json").read_text())["facts"]["frozen"] == region.count
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out/model") is not None


@pytest.mark.parametrize("adapter", [{"type": "dora"}, {"modules_to_save": ["norm"]}])
def test_what_cannot_be_masked_is_for_probes(adapter: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CpiftError, match=r"refine\.adapter.*is for probes"):
        Recipe.parse({**tiny.recipe(tmp_path), "refine": {"adapter": adapter}})
