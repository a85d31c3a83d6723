"""Memory on paper: against numbers reckoned here from the shapes, against what autograd keeps, and the page of tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cpift.errors import CpiftError
from cpift.planning import gpus as sizing
from cpift.planning import memory
from cpift.planning.memory import Shape, Step
from cpift.recipe.recipe import Recipe

# LLaMA-2-7B: 2 · 32000 · 4096 of embedding and head, 32 layers of 4 · 4096² + 3 · 4096 · 11008 + 2 · 4096, one norm.
LAYER = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
SEVEN = Shape(6_738_415_616, LAYER, 32000 * 4096, 32, 4096, 11008, 4096, 32, 32000)


def tables() -> Any:
    file = Path(__file__).parents[1] / "benchmarks" / "plan_tables.py"
    spec = importlib.util.spec_from_file_location("plan_tables", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shapes_of_llama_2() -> None:
    """The published counts of parameters; the 70B's keys and values have 8 heads."""
    shapes = {name: tables().llama(*widths) for name, widths in tables().MODELS.items()}
    assert shapes["7B"] == SEVEN
    assert shapes["13B"].parameters == 13_015_864_320
    assert shapes["70B"].parameters == 68_976_648_192
    assert shapes["70B"].layer == 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    assert (shapes["70B"].layers, shapes["70B"].heads, shapes["70B"].attention) == (80, 64, 8192)


def test_one_gpu() -> None:
    """16 bytes a parameter, 2 of the copies, and a step of 2 rows of 512 tokens with nothing frozen."""
    part = memory.training(SEVEN, Step(1024), 1, "data parallel")
    assert (part.weights, part.moments, part.gradients) == (26_953_662_464, 53_907_324_928, 26_953_662_464)
    assert (part.buckets, part.unsharded, part.frozen) == (0, 0, 0)
    assert part.copies == 13_476_831_232
    # 16·4096 + 8, five inputs of 2·4096, five of 2·4096 and 4·32, four of 2·11008
    assert part.activations == 32 * 1024 * (65544 + 40960 + 40960 + 128 + 88064)
    assert part.logits == 1024 * 32000 * 6
    assert part.peak == 26_953_662_464 + 53_907_324_928 + 26_953_662_464  # gradients are more than what passes
    whole = memory.training(SEVEN, Step(1024, accumulates=True), 1, "data parallel")
    assert whole.peak == part.peak + part.copies + part.activations + part.logits


def test_a_mostly_frozen_model_takes_a_bit_an_element() -> None:
    """And the values of nine tenths, in place of 12 bytes for each of these."""
    nine_tenths = 6_738_415_616 * 9 // 10
    assert (
        memory.training(SEVEN, Step(1024, frozen=nine_tenths), 1, "data parallel").frozen
        == 842_301_952 + 4 * nine_tenths
    )
    assert memory.training(SEVEN, Step(1024, frozen=1000), 1, "data parallel").frozen == 12_000


def test_data_parallel_has_buckets() -> None:
    """A copy of the gradients, on two GPUs and more; the rest as on one."""
    one, two = (memory.training(SEVEN, Step(1024), gpus, "data parallel") for gpus in (1, 2))
    assert two.buckets == 4 * 6_738_415_616
    assert two.peak == one.peak + two.buckets


def test_fsdp2_holds_an_eighth() -> None:
    """Of the weights and what goes with them; the head and two layers are whole, with gradients, in bf16."""
    frozen = 4 * 67_384_156
    part = memory.training(SEVEN, Step(1024, checkpointing=True, frozen=frozen), 8, "FSDP2")
    share = 842_301_952
    assert (part.weights, part.moments, part.gradients) == (4 * share, 8 * share, 4 * share)
    assert part.unsharded == 4 * (131_072_000 + 2 * 202_383_360)
    assert part.frozen == 12 * 33_692_078
    assert part.copies == 0
    assert part.activations == 1024 * (4 * 4096 * 32 + 235_656)
    accumulating = memory.training(SEVEN, Step(1024, accumulates=True), 8, "FSDP2")
    synced = memory.training(SEVEN, Step(1024, accumulates=True, synced=True), 8, "FSDP2")
    assert accumulating.unsharded == synced.unsharded + 2 * 6_738_415_616


def test_what_is_no_training() -> None:
    """Candidates are 16 bytes an element of a region; a region 5; a batch to score has 2·10^8 logits."""
    assert memory.scoring(SEVEN, 100) == 26_953_662_464 + 6250 * 4 * (4 * 4096 + 3 * 11008) + 12 * 200_000_000
    assert memory.identifying(1000, 3, 2) == 3 * 16 * 1000 + 2 * 3 * 8 * 2**20
    assert memory.fusing(1000, 3, 2) == 3 * 5 * 1000 + 2 * 24 * 2**20
    assert memory.loading(SEVEN, 8) == 32 * 6_738_415_616
    assert [memory.fits(n * 10**9) for n in (24, 25, 80, 81)] == [[24, 40, 80], [40, 80], [80], []]


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_activations_are_what_autograd_keeps(bf16: bool, kv_heads: int) -> None:
    """Two layers more, and what is kept more: the formula, to a tenth."""
    kept, layer = [], 0
    for layers in (1, 3):
        config = LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=88, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=kv_heads, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        network = LlamaForCausalLM(config)
        own = {p.untyped_storage().data_ptr() for p in network.parameters()}
        storages: dict[int, int] = {}
        held = []

        def pack(tensor: torch.Tensor, own: Any = own, storages: Any = storages, held: Any = held) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # so that no storage has the place of another
            return tensor

        ids = torch.arange(2 * 40).view(2, 40)
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", enabled=bf16):
            network(input_ids=ids, attention_mask=mask)
        kept.append(sum(storages.values()))
        shape = memory.shape_of({n: p.numel() for n, p in network.named_parameters()}, config.to_dict())
        layer = shape.layer
    each = (kept[1] - kept[0]) / 2 - (2 * layer if bf16 else 0)  # the copies are reckoned apart
    assert 80 * memory.layer_activations(shape, bf16) == pytest.approx(each, rel=0.1)


def test_of_a_recipe(tmp_path: Path) -> None:
    """Rows are shared by the GPUs; the refinement freezes two regions; what cannot be shared is refused."""
    recipe = Recipe.parse(tiny.recipe(tmp_path))
    found = sizing.per_gpu(recipe, SEVEN, 50, 1000, 2, {})
    part = found["training"]["data parallel"]
    assert part["stage"] == "refine"
    assert part["frozen"] == 12 * 2 * 1000
    assert part["copies"] == 0  # the recipe says bf16: false
    assert part["activations"] == 32 * 2 * 50 * memory.layer_activations(SEVEN, False)
    assert found["training"]["FSDP2"]["frozen"] == 12 * 1000
    assert found["training"]["FSDP2"]["fits"] == [80]
    with pytest.raises(CpiftError, match="4 rows a step cannot be shared by 3 processes"):
        sizing.per_gpu(recipe, SEVEN, 50, 1000, 3, {})
    with pytest.raises(CpiftError, match="hidden_size"):
        sizing.per_gpu(recipe, memory.shape_of({"a": 4}, {}), 50, 1000, 2, {})
    synced = {"gradient_accumulation_steps": 2, "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}  # fmt: skip
    whole = sizing.per_gpu(recipe.changed({"training.gradient_accumulation_steps": 4}), SEVEN, 50, 1000, 2, {})
    other = sizing.per_gpu(recipe.changed({f"training.{k}": v for k, v in synced.items()}), SEVEN, 50, 1000, 1, {})
    assert whole["training"]["FSDP2"]["accumulates"]
    assert other["training"]["FSDP2"]["unsharded"] == 0


def test_the_page_has_the_tables() -> None:
    """docs/plan.md ends with what benchmarks/plan_tables.py prints."""
    page = (Path(__file__).parents[1] / "docs" / "plan.md").read_text(encoding="utf-8")
    assert page.endswith("\n\n" + tables().tables() + "\n")
