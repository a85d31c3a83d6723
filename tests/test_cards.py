"""Recipes for one card: their stated memory is what ``plan`` computes for the model's shape, and every key of them works."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cards
import pytest
import tiny
from transformers import AutoModelForCausalLM

from cpift.checkpoint.align import excluded
from cpift.method.identify import core_count
from cpift.planning import memory
from cpift.planning.adapters import loaded_bytes
from cpift.planning.gpus import per_gpu
from cpift.planning.memory import shape_of
from cpift.recipe.adapter import Adapter
from cpift.recipe.recipe import Recipe
from cpift.train.adapters import check_adapter

FOLDER = Path(__file__).parents[1] / "recipes" / "cards"
# Of a recipe: the model whose shape it has, the card in GB, and the stage whose memory its head states.
RECIPES = {
    "24gb-0.6b-full": ("Qwen/Qwen3-0.6B", 24, "training"),
    "80gb-1b-full": ("google/gemma-3-1b-pt", 80, "training"),
    "80gb-8b-lora": ("Qwen/Qwen3-8B", 80, "training"),
    "24gb-8b-qlora": ("meta-llama/Llama-3.1-8B", 24, "probe"),
}


def small(name: str, folder: Path) -> Recipe:
    """The recipe with all its keys, on a tiny model of the same architecture and a few rows."""
    words, config = tiny.tokenizer(), cards.tiny_config(RECIPES[name][0])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    recipe = Recipe.load(FOLDER / f"{name}.yaml")
    if "enable_thinking" in recipe.chat_template_kwargs:  # a variable that Qwen3's template reads
        words.chat_template = "{% if enable_thinking %}{% endif %}" + words.chat_template
    words.save_pretrained(folder / "base")
    few: dict[str, Any] = {
        f"tasks.{task}.{part}": n for task in recipe.tasks for part, n in (("train", 16), ("eval", 2))
    }
    return recipe.changed({"model": str(folder / "base"), "refine.examples_per_task": 4, **few})


def test_all_recipes_are_here() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("model", cards.PUBLISHED)
def test_the_shapes_have_the_published_number_of_parameters(model: str) -> None:
    assert cards.count(cards.PUBLISHED[model]()) == cards.PARAMETERS[model]


@pytest.mark.parametrize("name", RECIPES)
def test_the_stated_memory_is_the_plan_s_and_fits_the_card(name: str) -> None:
    model, card, stage = RECIPES[name]
    text, recipe, config = (FOLDER / f"{name}.yaml").read_text(), Recipe.load(FOLDER / f"{name}.yaml"), cards.PUBLISHED[model]()  # fmt: skip
    shapes = cards.shapes(config)
    sizes = {tensor: math.prod(shape) for tensor, shape in shapes.items()}
    counted = sum(sizes.values()) - sum(sizes[tensor] for tensor in excluded(sizes, recipe.region.exclude))
    core = core_count(str(recipe.region.percent), counted)
    planned = per_gpu(recipe, shape_of(sizes, config.to_dict()), recipe.training["max_length"], core, 1, shapes)
    training = planned["training"]["data parallel"]
    peak = training["peak"] if stage == "training" else training["stages"][stage]
    assert f"# memory of a {stage}: {peak / 1e9:.1f} GB" in text
    assert card in memory.fits(peak)
    assert f"({cards.PARAMETERS[model]:,} parameters)" in text
    assert re.match(rf"# One card of {card} GB, ", text)


@pytest.mark.parametrize("name", RECIPES)
def test_the_architecture_takes_the_recipe_s_adapters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put into a tiny model of the architecture: modules are there, and the adapter can be merged."""
    monkeypatch.setattr("cpift.train.four_bit.find_spec", lambda library: library)  # bitsandbytes is for the training
    recipe = small(name, tmp_path)
    for stage in recipe.stages_by_adapter:
        adapter = getattr(recipe, stage).adapter
        check_adapter(adapter, tmp_path / "base", stage)
        shapes = cards.shapes(cards.tiny_config(RECIPES[name][0]))
        # Seven maps a layer: q and o 32 x 32, k and v 16 x 32, three of 48 x 32.
        assert adapter.parameters(shapes) == 2 * 16 * (2 * 64 + 2 * 48 + 3 * 80)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_the_recipe_works_on_a_tiny_model(name: str, tmp_path: Path) -> None:
    from cpift import run

    recipe = small(name, tmp_path)
    if recipe.probe.adapter is not None and recipe.probe.adapter.kind.four_bit:
        if find_spec("bitsandbytes") is None:
            pytest.skip("needs bitsandbytes")
        run(recipe, tmp_path / "out", until="fuse")
        assert list((tmp_path / "out" / "stages" / "05-fuse").glob("**/model*.safetensors"))
    else:
        scores = run(recipe, tmp_path / "out")
        assert any(set(model) == set(recipe.tasks) for model in scores["models"].values())
        assert list((tmp_path / "out" / "model").glob("model*.safetensors"))


# An 8B model on paper: LLaMA-2-7B's widths. W: what a layer's seven maps hold.
W = 4 * 4096**2 + 3 * 4096 * 11008
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (32000, 4096), "lm_head.weight": (32000, 4096), "model.norm.weight": (4096,),
    **{
        f"model.layers.{i}.{part}.weight": shape
        for i in range(32)
        for part, shape in {
            "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (4096, 4096), "self_attn.v_proj": (4096, 4096),
            "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096),
            "mlp.down_proj": (4096, 11008), "input_layernorm": (4096,), "post_attention_layernorm": (4096,),
        }.items()
    },
}  # fmt: skip
TRAINED = 32 * 16 * (4 * 8192 + 3 * 15104)  # r = 16, seven maps
CONFIG = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000,
    "num_hidden_layers": 32,
}  # fmt: skip


def planned(tmp_path: Path, **changes: Any) -> Any:
    recipe = Recipe.parse(tiny.recipe(tmp_path, **{"training": {"per_device_train_batch_size": 1}, **changes}))
    shape = shape_of({name: math.prod(size) for name, size in SHAPES.items()}, CONFIG)
    return per_gpu(recipe, shape, 512, 1000, 1, SHAPES)["training"]["data parallel"]


def test_an_adapter_has_gradients_and_moments_and_the_model_has_none(tmp_path: Path) -> None:
    """By hand: a probe takes the model in fp32 and 16 bytes for each trained element."""
    full, lora = planned(tmp_path), planned(tmp_path, probe={"adapter": {"r": 16}})
    assert full["stages"]["probe"] == full["stages"]["backbone"] >= 16 * 6_738_415_616
    assert lora["stages"]["backbone"] == full["stages"]["backbone"]
    kept = 4 * 6_738_415_616 + 12 * TRAINED
    activations = 32 * 512 * (16 * 4096 + 8 + 10 * 4096 + 10 * 4096 + 128 + 8 * 11008) + 512 * 7 * 16 * 2 * 32
    copies = 2 * (32000 * 4096 + 32 * (W + 2 * 4096))
    assert lora["stages"]["probe"] == kept + max(4 * TRAINED, activations + copies + 512 * 32000 * 6)


def test_a_merged_adapter_keeps_the_merged_weight_of_each_layer_or_of_one(tmp_path: Path) -> None:
    """In bf16, and of the layer in work also three fp32 matrices; with checkpointing, of one layer."""
    given = {
        "backbone": {"from": "multi_task", "adapter": {"r": 16}},
        "refine": {"freeze": False, "adapter": {"r": 16}},
    }
    whole = planned(tmp_path, probe={"adapter": {"r": 16}}, **given)
    assert whole["stage"] != "probe"
    assert whole["copies"] == 2 * 32000 * 4096 + 2 * 32 * W + 12 * W
    once = planned(tmp_path, **given, probe={"adapter": {"r": 16}}, training={"gradient_checkpointing": True})
    assert once["copies"] == 2 * 32000 * 4096 + 2 * W + 12 * W
    assert once["peak"] < whole["peak"]


def test_four_bits_have_their_scales_and_leave_embeddings_as_they_are() -> None:
    """By hand: half a byte and a 64th of four; embedding, head and norms in fp32."""
    others = 2 * 32000 * 4096 + (2 * 32 + 1) * 4096
    assert loaded_bytes(Adapter(type="qlora"), SHAPES) == 32 * W // 2 + 32 * W // 16 + 4 * others
    assert loaded_bytes(Adapter(type="lora"), SHAPES) == 4 * (32 * W + others)
