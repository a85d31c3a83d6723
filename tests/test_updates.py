"""Probes kept as updates in bf16: read as θ⁰ + Δ wherever a checkpoint is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from checkpoints import write
from safetensors.torch import load_file
from tiny_run import one_thread

from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.updates import FILE, write_updates
from cpift.errors import CpiftError
from cpift.method.fuse import fuse
from cpift.method.identify import identify
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.stages.train import _settings
from cpift.train.models import load_model
from cpift.train.spec import TrainSpec

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_is_added_to_the_base_as_it_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    """Eight bits of Δ are kept, whatever the size of θ; computed by torch beside it."""
    torch.manual_seed(0)
    before = {NAME: torch.randn(40, 30).to(dtype), "model.norm.weight": torch.ones(30).to(dtype)}
    after = {name: value.float() + 1e-4 * torch.randn(value.shape) for name, value in before.items()}
    base, tuned = open_checkpoint(write(tmp_path / "base", before)), open_checkpoint(write(tmp_path / "tuned", after))
    (tmp_path / "kept").mkdir()
    write_updates(base, tuned, tmp_path / "kept")
    read = open_checkpoint(tmp_path / "kept", base)
    for name, value in before.items():
        expected = value.float() + (after[name] - value.float()).bfloat16().float()
        assert np.array_equal(read.raw(name), expected.numpy().ravel())
        assert np.array_equal(read.raw(name, 7, 21), expected.numpy().ravel()[7:21])
        apart = np.abs(read.raw(name) - after[name].numpy().ravel())
        assert apart.max() < 2**-8 * 1e-4 * 5 + 2**-22, "of θ in bf16 the error would be 2**-9"


def test_updates_need_their_base(tmp_path: Path) -> None:
    """None, and one of other shapes."""
    before = {NAME: torch.randn(4, 3)}
    base = open_checkpoint(write(tmp_path / "base", before))
    write_updates(base, open_checkpoint(write(tmp_path / "tuned", before)), tmp_path)
    with pytest.raises(CpiftError, match="holds updates in place of weights; give the base"):
        open_checkpoint(tmp_path)
    other = open_checkpoint(write(tmp_path / "other", {NAME: torch.randn(5, 3)}))
    with pytest.raises(CpiftError, match=r"made from another base \(model\.layers\.0.* is \[4, 3\] there, \[5, 3\]"):
        open_checkpoint(tmp_path, other)


def test_a_run_keeps_updates_and_reads_them_everywhere(tmp_path: Path) -> None:
    """Loading, regions and fusion; half the bytes; the region is near that of whole weights."""
    recipe = tiny.recipe(tmp_path, ("upper",))
    folders = {}
    for kept in ("weights", "updates"):
        with one_thread():
            run(Recipe.parse({**recipe, "output": {"probes": kept}}), tmp_path / kept, until="probe")
        folders[kept] = tmp_path / kept / "stages/01-probe/upper"
    assert not (folders["updates"] / "model.safetensors").exists()
    assert (folders["updates"] / FILE).stat().st_size < 0.55 * (folders["weights"] / "model.safetensors").stat().st_size
    base, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", folders["weights"]))
    loaded = dict(load_model(folders["updates"], base=tmp_path / "base").named_parameters())
    assert torch.equal(loaded[NAME], base[NAME] + (whole[NAME] - base[NAME]).bfloat16().float())
    regions = {kept: identify(tmp_path / "base", {"upper": folder}, "10")["upper"] for kept, folder in folders.items()}
    assert regions["updates"].count == regions["weights"].count
    assert regions["updates"].jaccard(regions["weights"]) > 0.95
    fuse(tmp_path / "base", {"upper": folders["updates"]}, tmp_path / "fused", regions={"upper": regions["updates"]})
    core = torch.from_numpy(regions["updates"].positions[NAME].astype("int64"))
    fused = load_file(tmp_path / "fused/model.safetensors")[NAME].view(-1)
    assert torch.equal(fused[core], loaded[NAME].detach().view(-1)[core]), "transplanted"
    settings = json.loads((folders["updates"] / "stage.json").read_text())["settings"]
    assert settings["kept_as"] == "updates"


def test_only_updates_are_in_the_key() -> None:
    kept = _settings(TrainSpec({}, 1, 0, updates=True))
    assert kept.pop("kept_as") == "updates"
    assert kept == _settings(TrainSpec({}, 1, 0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probe": {"adapter": {"r": 2}}}, "output.probes: updates saves nothing with probe.adapter"),
        ({"dtype": "bfloat16"}, "output.probes: updates saves nothing with model.dtype: bfloat16"),
    ],
)
def test_where_nothing_is_saved(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CpiftError, match=said):
        Recipe.parse({**tiny.recipe(tmp_path), "output": {"probes": "updates"}, **change})
