"""Adapters on a base in 4 bit, by bitsandbytes on a processor: frozen positions keep the bits of the weights themselves.

bitsandbytes is not among the tests' packages; without it these are skipped, but for the one that says so. Trainings
that write whole weights and resume: tests/test_merged_adapters.py, by both types of adapter.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import adapters
import numpy as np
import pytest
import tiny
import torch
from test_merged_adapters import needs_bitsandbytes, some_region, some_steps
from transformers import AutoModelForCausalLM

from cpift.checkpoint.reader import open_checkpoint
from cpift.errors import CpiftError
from cpift.method.region import Region
from cpift.recipe.adapter import Adapter
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.train.merged_adapters import put_in

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
    some_steps(model)
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
