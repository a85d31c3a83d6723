"""The examples of ``examples/``, run at tiny size: what is frozen keeps its bits, the rest moves."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_run
import torch
from safetensors.torch import load_file

from cpift.method.apply_patch import apply_patches, remove_patches
from cpift.method.patch import make_patch
from cpift.method.region import Region
from cpift.train.protect import protect

FOLDER = Path(__file__).parents[1] / "examples"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, and half of it as a region."""
    folder = tiny.base(tmp_path_factory.mktemp("examples") / "model")
    protect(folder, by="magnitude", percent="50", unit="column").region.save(folder.parent / "region.safetensors")
    return folder


def run(name: str, *arguments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    torch.manual_seed(0)
    with tiny_run.one_thread():
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("peft_adapter", "train_inside")])
@pytest.mark.filterwarnings("ignore")
def test_what_is_frozen_keeps_its_bits(model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And elsewhere the weights move."""
    region_file = model.parent / "region.safetensors"
    run(name, model, region_file, tmp_path / "out", monkeypatch=monkeypatch)
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    region, moved = Region.load(region_file), 0
    for parameter, weights in before.items():
        frozen = np.zeros(weights.numel(), bool)
        frozen[region.positions.get(parameter, np.empty(0, int))] = True
        bits = [t.numpy().ravel().view(np.int32) for t in (weights, after[parameter])]
        assert np.array_equal(bits[0][frozen], bits[1][frozen]), parameter
        moved += int((bits[0][~frozen] != bits[1][~frozen]).sum())
    assert moved > 1000


@pytest.mark.filterwarnings("ignore")
def test_a_skill_trained_inside_its_region_is_a_patch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights move inside the region alone; as a patch on the model they are the trained model, and come off."""
    region_file = model.parent / "region.safetensors"
    run("train_inside", model, region_file, tmp_path / "out", monkeypatch=monkeypatch)
    region = Region.load(region_file)
    made = make_patch(model, tmp_path / "out", tmp_path / "skill.safetensors", region=region, max_share=0.5)
    assert made.count > 1000
    apply_patches(model, [tmp_path / "skill.safetensors"], tmp_path / "on")
    remove_patches(tmp_path / "on", ["skill"], tmp_path / "off")
    assert tiny_run.same(tmp_path / "on", tmp_path / "out")
    assert (tmp_path / "off/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_half_of_an_adapter_is_frozen(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger half of its own matrices keeps its bits, the smaller half moves."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    made.save_pretrained(tmp_path / "adapter")
    run("peft_adapter", model, tmp_path / "adapter", tmp_path / "out", monkeypatch=monkeypatch)
    before, after = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("adapter", "out"))
    old, new = (np.concatenate([t.numpy().ravel() for t in w.values()]) for w in (before, after))
    assert before.keys() == after.keys()
    large = np.abs(old) > np.median(np.abs(old))
    assert np.array_equal(old[large].view(np.int32), new[large].view(np.int32))
    assert (old[~large] != new[~large]).mean() > 0.9


def test_they_are_short() -> None:
    """At most 40 lines each, and listed on the page."""
    page = (FOLDER.parent / "docs" / "protect.md").read_text()
    for name in NAMES:
        assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 40, name
        assert f"examples/{name}.py" in page, name
