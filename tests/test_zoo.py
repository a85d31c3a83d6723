"""Each architecture through a run of two tasks with freezing, identify, fuse and evaluate; the others are refused."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_run
import torch
import zoo
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, GraniteMoeConfig, T5Config, T5ForConditionalGeneration

from cpift import evaluate, fuse, identify, run
from cpift.checkpoint.reader import open_checkpoint
from cpift.errors import CpiftError
from cpift.method.region import Region
from cpift.method.rehearsal import check_names
from cpift.recipe.recipe import Recipe
from cpift.runs.preflight import check_router
from cpift.train.models import check_model

TASKS = ("reverse", "upper")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # each stage collects what it leaves; there is no need to look through the imported libraries each time
    with tiny_run.one_thread():
        yield
    gc.unfreeze()


# Those whose names or shapes are converted, and one of each other build. The others are much like llama, which all tests run.
SHORT = [*zoo.CONVERTED, "gpt2", "gpt_oss", "mamba"]


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[] if kind in SHORT else pytest.mark.long) for kind in zoo.SUPPORTED],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run ``out``, its ``recipe.json`` and ``base``; the name of the folder begins with the architecture's."""
    folder = tmp_path_factory.mktemp(request.param)
    zoo.base(folder / "base", request.param)
    settings = tiny.recipe(folder, TASKS, probe={"steps": 1}, backbone={"from": "pretrained"})
    (folder / "recipe.json").write_text(json.dumps(settings))
    run(Recipe.parse(settings), folder / "out")
    return folder


def _bits(file: Path) -> dict[str, np.ndarray]:
    return {name: array.ravel().view(np.int32) for name, array in load_file(file).items() if array.itemsize == 4}


def test_frozen_positions_of_the_saved_file_keep_their_bits(place: Path) -> None:
    """Of the first stage's task, in the second; elsewhere it was trained. Buffers are those of the base."""
    stages = place / "out/stages"
    grouping = json.loads((stages / "03-group/groups.json").read_text())
    (first,) = grouping["groups"][grouping["order"][0]]
    region = Region.load(stages / "02-identify" / first / "region.safetensors")
    before, after = (_bits(stages / "06-refine" / k / "model.safetensors") for k in ("1", "2"))
    assert before.keys() == after.keys() == load_file(place / "base/model.safetensors").keys()
    assert set(region.positions) <= before.keys()
    for name, positions in region.positions.items():
        assert np.array_equal(before[name][positions], after[name][positions]), name
    changed = sum(int(np.count_nonzero(before[name] != after[name])) for name in before)
    assert changed > region.count
    facts = json.loads((stages / "06-refine/2/stage.json").read_text())["facts"]
    assert facts["frozen"] == region.count
    assert facts["frozen_changed"] == 0


def test_identify_counts_the_parameters_of_the_class(place: Path) -> None:
    """D is what transformers calls parameters: no buffers, a tied pair once. The regions are the run's."""
    stages = place / "out/stages"
    regions = identify(place / "base", {task: stages / "01-probe" / task for task in TASKS}, percent=5)
    model = AutoModelForCausalLM.from_pretrained(place / "base")
    for task, region in regions.items():
        assert region.total == sum(parameter.numel() for parameter in model.parameters())
        theirs = Region.load(stages / "02-identify" / task / "region.safetensors")
        assert region.positions.keys() == theirs.positions.keys()
        assert all(np.array_equal(region.positions[name], theirs.positions[name]) for name in region.positions)


def test_fused_checkpoints_load_whole(place: Path, tmp_path: Path) -> None:
    """transformers misses nothing, and buffers are the base's."""
    probes = {task: place / "out/stages/01-probe" / task for task in TASKS}
    fuse(place / "base", probes, tmp_path / "fused", regions=identify(place / "base", probes, percent=5))
    model, loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", output_loading_info=True)
    assert not any(loaded.values()), loaded
    theirs = dict(AutoModelForCausalLM.from_pretrained(place / "base").named_buffers())
    assert all(torch.equal(buffer, theirs[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("kind", [kind for kind in zoo.SUPPORTED if kind not in SHORT])
def test_the_others_are_read_and_written_without_a_run(kind: str, tmp_path: Path) -> None:
    """Of a changed model, D is the class's parameters, and transformers loads what is fused; the whole run is a long test."""
    base = zoo.base(tmp_path / "base", kind)
    check_model(base)
    check_names(open_checkpoint(base))
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "tuned")
    regions = identify(base, {"t": tmp_path / "tuned"}, percent=5)
    assert regions["t"].total == sum(parameter.numel() for parameter in model.parameters())
    fuse(base, {"t": tmp_path / "tuned"}, tmp_path / "fused", regions=regions)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", output_loading_info=True)[1]
    assert not any(loaded.values()), loaded


def test_every_model_of_the_run_is_scored(place: Path) -> None:
    """And evaluate alone gives the same."""
    scores = json.loads((place / "out/scores.json").read_text())
    recipe = Recipe.parse(json.loads((place / "recipe.json").read_text()))
    alone = evaluate(place / "out/stages/06-refine/2", recipe)
    for task in TASKS:
        assert math.isfinite(alone[task]["score"])
        assert scores["models"]["refine/2"][task]["score"] == alone[task]["score"]


def test_the_page_lists_the_zoo() -> None:
    """docs/models.md has a row for each architecture, and for no other."""
    page = (Path(__file__).parents[1] / "docs/models.md").read_text()
    rows = [line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")]
    assert rows == list(zoo.SUPPORTED)


def test_a_model_that_is_no_causal_language_model_is_refused_before_training(tmp_path: Path) -> None:
    """T5 has an encoder."""
    small = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 259}
    T5ForConditionalGeneration(T5Config(**small)).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(CpiftError, match=r"base: transformers cannot load it .*T5Config"):
        run(Recipe.parse(tiny.recipe(tmp_path, TASKS)), tmp_path / "out")
    assert not list((tmp_path / "out").glob("stages/01-*"))


def with_more(folder: Path, extra: dict[str, np.ndarray]) -> Path:
    """The checkpoint with more tensors in its file."""
    file = folder / "model.safetensors"
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    return folder


def test_layers_that_the_class_ignores_are_copied_and_not_counted(tmp_path: Path) -> None:
    """DeepSeek-V3's layer for multi-token prediction: transformers ignores it, so no probe has it."""
    base = zoo.base(tmp_path / "base", "deepseek_v3")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "tuned")
    plain = identify(base, {"t": tmp_path / "tuned"}, percent=5)["t"]
    extra = {
        f"model.layers.61.{name}": np.full((16, 32), 2.5, np.float32) for name in ("eh_proj.weight", "enorm.weight")
    }
    with_more(base, extra)
    region = identify(base, {"t": tmp_path / "tuned"}, percent=5)["t"]
    assert region.total == plain.total == sum(parameter.numel() for parameter in model.parameters())
    assert all(np.array_equal(region.positions[name], plain.positions[name]) for name in plain.positions)
    check_model(base)
    check_names(open_checkpoint(base))
    fuse(base, {"t": tmp_path / "tuned"}, tmp_path / "fused", regions={"t": region})
    fused = load_file(tmp_path / "fused/model.safetensors")
    assert all(np.array_equal(fused[name], array) for name, array in extra.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", output_loading_info=True)[1]
    assert not any(loaded.values()), loaded


def test_layers_for_which_the_class_has_no_place_are_refused_before_training(tmp_path: Path) -> None:
    """A third layer, where the configuration has two."""
    folder = zoo.base(tmp_path / "base", "deepseek_v3")
    with_more(folder, {"model.layers.2.input_layernorm.weight": np.ones(16, np.float32)})
    with pytest.raises(CpiftError, match=r"has no place.*model\.layers\.2\.input_layernorm\.weight"):
        run(Recipe.parse(tiny.recipe(tmp_path, TASKS)), tmp_path / "out")
    assert not list((tmp_path / "out").glob("stages/01-*"))


def test_a_router_whose_loss_trl_cannot_compute_is_refused_before_training(tmp_path: Path) -> None:
    """GraniteMoE's configuration has no ``num_experts``. Without that loss it can be trained."""
    folder = tmp_path / "base"
    config = GraniteMoeConfig(
        vocab_size=259, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    config.save_pretrained(folder)
    with pytest.raises(CpiftError, match=r"experts of granitemoe.*set training\.router_aux_loss_coef to 0"):
        check_router(Recipe.parse(tiny.recipe(tmp_path, TASKS)), folder)
    check_router(Recipe.parse(tiny.recipe(tmp_path, TASKS, training={"router_aux_loss_coef": 0})), folder)
