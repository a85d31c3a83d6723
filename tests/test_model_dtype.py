"""``model.dtype``, ``model.device_map`` and ``model.quantization``: what they do, what they refuse, what decides a key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny_run import Listener, one_thread
from transformers import AutoModelForCausalLM

from cpift.data.encoding import Encoded, encode
from cpift.distributed import ranks
from cpift.errors import CpiftError
from cpift.files.findings import REMEDIES
from cpift.method.region import Region
from cpift.planning.memory import Step, shape_of, training
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.preflight import check_models
from cpift.runs.stages.train import _settings
from cpift.train import accelerator
from cpift.train.fine_tune import fine_tune
from cpift.train.spec import TrainSpec

SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-3}
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, stored as BF16; ``mixed``, with one tensor in fp32."""
    made = tmp_path_factory.mktemp("dtype")
    tiny.base(made / "base")
    AutoModelForCausalLM.from_pretrained(made / "base", dtype=torch.bfloat16).save_pretrained(made / "base")
    tiny.base(made / "mixed")
    model = AutoModelForCausalLM.from_pretrained(made / "mixed", dtype=torch.bfloat16)
    model.model.norm.float()
    model.save_pretrained(made / "mixed")
    return made


def rows() -> list[Encoded]:
    return [encode(row, tiny.tokenizer()) for row in tiny.rows("first", 8, 0)]


def test_bf16_weights_are_trained_and_saved_and_frozen_bits_stay(place: Path, tmp_path: Path) -> None:
    """No second copy in fp32; most small updates are lost, which fp32 weights keep."""
    before = load_file(place / "base/model.safetensors")
    positions = np.arange(0, before[EMBEDDING].numel(), 3)
    frozen = Region({EMBEDDING: positions.astype(np.int32)}, total=before[EMBEDDING].numel(), percent="33")
    done = fine_tune(
        place / "base", rows(), tmp_path / "bf16", TrainSpec(SETTINGS, 3, 0, dtype="bfloat16"), frozen=frozen
    )
    fine_tune(place / "base", rows(), tmp_path / "fp32", TrainSpec(SETTINGS, 3, 0), frozen=frozen)
    half, full = (load_file(tmp_path / name / "model.safetensors") for name in ("bf16", "fp32"))
    assert {t.dtype for t in half.values()} == {torch.bfloat16}
    assert {t.dtype for t in full.values()} == {torch.float32}
    assert (done.precision, done.frozen, done.frozen_changed) == ("bf16 weights", len(positions), 0)
    kept = torch.from_numpy(positions)
    assert torch.equal(half[EMBEDDING].view(-1)[kept], before[EMBEDDING].view(-1)[kept])
    name = "model.layers.0.mlp.up_proj.weight"
    lost = [float((after[name].float() == before[name].float()).float().mean()) for after in (half, full)]
    assert lost[0] > 2 * lost[1]
    assert lost[0] < 1


def test_a_run_in_bf16_says_what_it_costs(place: Path, tmp_path: Path) -> None:
    """Every region has the finding with its share; what refine starts from is stored as BF16, too."""
    recipe = tiny.recipe(tmp_path, ("reverse", "upper"), probe={"steps": 1})
    recipe["model"] = {"path": str(place / "base"), "dtype": "bfloat16"}
    watch = Listener()
    with one_thread():
        run(Recipe.parse(recipe), tmp_path / "out", until="fuse", reporter=watch)
    for task in ("reverse", "upper"):
        facts = json.loads((tmp_path / f"out/stages/02-identify/{task}/stage.json").read_text())["facts"]
        (found,) = [one for one in facts["findings"] if one["code"].startswith(("bf16", "zero"))]
        assert f"{facts['zero_share']:.0%} of the updates are exactly zero" in found["text"]
        assert found["remedy"] == REMEDIES["bf16-weights"]
    assert {t.dtype for t in load_file(tmp_path / "out/stages/05-fuse/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization": "4bit"}, "quantization: 4bit weights cannot be trained.*set probe.adapter: {type: qlora}"),
        ({"dtype": "bfloat16", "refine": {"adapter": {"r": 2}}}, "dtype: bfloat16 is not combined with refine.adapter"),
        ({"dtype": "bfloat16"}, "stored as BF16, and .*base has .* as F32: Δ would be its rounding"),
        ({"dtype": "bfloat16", "training": {"fp16": True}}, "training.fp16: is not combined with model.dtype"),
        ({"model": {"path": "p", "dtype": "half"}}, "model: dtype: .*'float32' or 'bfloat16'"),
        ({"model": {"path": "p", "device_map": "cuda:9"}}, "model: device_map: .*'auto'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CpiftError, match=said) as refused:
        check_models(Recipe.parse({**tiny.recipe(tmp_path), **change}))
    assert "\n" not in str(refused.value)


def test_one_fp32_tensor_is_enough_to_refuse_bf16(place: Path, tmp_path: Path) -> None:
    """It is named, and nothing is trained."""
    with pytest.raises(CpiftError, match=r"mixed has model\.norm\.weight as F32"):
        fine_tune(place / "mixed", rows(), tmp_path / "out", TrainSpec(SETTINGS, 1, 0, dtype="bfloat16"))
    assert not (tmp_path / "out").exists()


def test_quantization_is_accepted_where_a_probe_is_qlora(tmp_path: Path) -> None:
    """It says what the adapter's type says anyway."""
    recipe = {**tiny.recipe(tmp_path), "probe": {"adapter": {"type": "qlora"}}}
    assert Recipe.parse({**recipe, "quantization": "4bit"}).quantization == "4bit"


def test_a_device_map_is_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.parse({**tiny.recipe(tmp_path), "device_map": "auto"})
    check_models(recipe)
    monkeypatch.setattr(ranks, "size", lambda: 2)
    with pytest.raises(CpiftError, match=r"^model\.device_map: spreads a model over the devices of one process"):
        check_models(recipe)


def test_layers_outside_of_the_devices_are_not_trained() -> None:
    """What transformers writes down of a model that did not fit."""

    class Spread:
        hf_device_map = {"model.layers.0": 0, "model.layers.1": "disk"}  # noqa: RUF012

    assert accelerator.spread(Spread())
    with pytest.raises(CpiftError, match=r"^model\.device_map: the model does not fit .* left on disk"):
        accelerator.check_trainable(Spread())


def test_a_device_map_changes_no_bit(place: Path, tmp_path: Path) -> None:
    """Here all devices are the one processor."""
    for name in (None, "auto"):
        fine_tune(place / "base", rows(), tmp_path / str(name), TrainSpec(SETTINGS, 1, 0, device_map=name))
    one, spread = (load_file(tmp_path / name / "model.safetensors") for name in ("None", "auto"))
    assert all(torch.equal(one[name], spread[name]) for name in one)


def test_only_what_decides_is_in_the_key() -> None:
    assert _settings(TrainSpec({}, 1, 0, device_map="auto")) == _settings(TrainSpec({}, 1, 0))
    bf16 = _settings(TrainSpec({}, 1, 0, dtype="bfloat16"))
    assert bf16.pop("dtype") == "bfloat16"
    assert bf16 == _settings(TrainSpec({}, 1, 0))


def test_a_plan_of_bf16_weights_is_half() -> None:
    """Weights, moments and gradients; and autocast casts nothing."""
    shape = shape_of({"a": 100, "model.layers.0.b": 50}, {"vocab_size": 10, "hidden_size": 10})
    full, half = (training(shape, Step(tokens=4, width=width), 1, "data parallel") for width in (4, 2))
    assert (half.weights, half.moments, half.gradients, half.copies) == (300, 600, 300, 0)
    assert (full.weights, full.moments, full.gradients, full.copies) == (600, 1200, 600, 300)
