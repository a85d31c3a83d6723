"""Adapters on a base in 4 bit, by bitsandbytes on a processor: frozen positions keep the bits of the weights themselves.

bitsandbytes is not among the tests' packages; without it these are skipped, but for the one that says so.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import pytest
import tiny
import torch
from test_merged_adapters import some_region, train
from transformers import AutoModelForCausalLM

from cpift.checkpoint.reader import open_checkpoint
from cpift.errors import CpiftError
from cpift.method.region import Region
from cpift.recipe.adapter import Adapter
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.train.merged_adapters import put_in

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
QLORA = {"type": "qlora", "r": 4}


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="it is installed")
@pytest.mark.parametrize("part", ["backbone", "refine"])
def test_without_bitsandbytes_it_is_refused_before_anything_is_trained(part: str, tmp_path: Path) -> None:
    recipe = Recipe.parse({**tiny.recipe(tmp_path, ("reverse",)), part: {"adapter": QLORA}})
    with pytest.raises(
        CpiftError, match=rf"^{part}\.adapter\.type: qlora needs bitsandbytes; pip install bitsandbytes"
    ):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "stages").exists()


@needs_bitsandbytes
def test_the_forward_pass_has_the_weights_of_4_bit_and_the_model_the_whole_ones(tmp_path: Path) -> None:
    """Beside bitsandbytes' own expansion: the same at frozen positions, elsewhere with the update that W gets as well."""
    from bitsandbytes import functional

    base = adapters.base(tmp_path / "base")
    region = some_region(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    whole = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    made = put_in(model, Adapter(**QLORA), region, seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    rows = torch.arange(24).view(4, 6)
    for _ in range(3):
        model(rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    used = {name: module.weight.detach().clone() for name, module in made.modules.items()}
    assert made.merge() == 0
    moved = 0
    for name, module in made.modules.items():
        origin, mask = whole[f"{name}.weight"], torch.zeros(module.weight.numel(), dtype=torch.bool)
        mask[torch.as_tensor(region.positions[f"{name}.weight"], dtype=torch.long)] = True
        packed, state = functional.quantize_4bit(origin, quant_type="nf4", blocksize=64)
        rounded = functional.dequantize_4bit(packed, state)
        assert not torch.equal(rounded, origin)
        frozen = mask.view_as(origin)
        assert torch.equal(used[name][frozen], rounded[frozen])
        assert torch.equal(module.weight[frozen].view(torch.int32), origin[frozen].view(torch.int32))
        assert torch.allclose(module.weight - origin, used[name] - rounded, atol=1e-6)
        moved += int((module.weight[~frozen] != origin[~frozen]).sum())
    assert moved > 1000


@needs_bitsandbytes
@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": True}], ids=["plain", "checkpointing"])
def test_a_training_writes_whole_weights_and_keeps_the_region(settings: dict[str, Any], tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    region = some_region(base)
    after = train(base, tmp_path / "out", region, settings, adapter=Adapter(**QLORA))
    before = open_checkpoint(base)
    for name, positions in region.positions.items():
        kept = before.raw(name)[positions].view(np.int32)
        assert np.array_equal(kept, after[name].ravel()[positions].view(np.int32))
    assert {n for n in after if not np.array_equal(before.raw(n), after[n].ravel())} == {
        n for n in after if "_proj" in n
    }


@needs_bitsandbytes
def test_a_training_cut_off_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def cut(event: Any) -> None:
        if event["step"] == 3:
            raise Cut

    base = tiny.base(tmp_path / "base")
    more: dict[str, Any] = {"training": {"save_steps": 2, "save_strategy": "steps"}, "frozen": some_region(base)}
    more["adapter"] = Adapter(**QLORA)
    whole = train(base, tmp_path / "whole", work=tmp_path / "w1", **more)
    with pytest.raises(Cut):
        train(base, tmp_path / "cut", work=tmp_path / "w2", tick=cut, **more)
    resumed = train(base, tmp_path / "cut", work=tmp_path / "w2", **more)
    assert all(np.array_equal(whole[n], resumed[n]) for n in whole)


@needs_bitsandbytes
def test_a_weight_that_another_module_shares_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.base(tmp_path / "base"), dtype=torch.float32)
    with pytest.raises(CpiftError, match="qlora does not take lm_head, whose weight another module shares"):
        put_in(model, Adapter(**QLORA, target_modules=["lm_head"]), None, seed=0)


@needs_bitsandbytes
def test_a_run_by_qlora_throughout(tmp_path: Path) -> None:
    """Probes, backbone and two refine stages; the second one keeps the first one's region to the bit."""
    table = tiny.recipe(tmp_path, ("reverse", "upper"))
    table["probe"] = {"steps": 4, "adapter": QLORA}
    table["backbone"] = {"adapter": QLORA}
    table["refine"] = {"examples_per_task": 4, "adapter": QLORA}
    recipe = Recipe.parse(table)
    run(recipe, tmp_path / "out", until="refine")
    stages = tmp_path / "out/stages"
    regions = {name: Region.load(stages / "02-identify" / name / "region.safetensors") for name in ("reverse", "upper")}
    before, after = open_checkpoint(stages / "06-refine/1"), open_checkpoint(stages / "06-refine/2")
    kept = {
        task: all(np.array_equal(before.raw(n)[p], after.raw(n)[p]) for n, p in region.positions.items())
        for task, region in regions.items()
    }
    assert sorted(kept.values()) == [False, True], "the earlier task's region alone"
