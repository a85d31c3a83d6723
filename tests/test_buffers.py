"""Buffers are copied by fuse and never counted: by what the model's class says, or by name where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from checkpoints import write
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MiniMaxConfig

from cpift import fuse, identify
from cpift.checkpoint.reader import open_checkpoint

BUFFERS: dict[str, torch.Tensor] = {
    "norm.running_mean": torch.randn(8),
    "norm.running_var": torch.rand(8),
    "norm.num_batches_tracked": torch.tensor(7),
    "embeddings.position_ids": torch.arange(16).reshape(1, 16),
    "layers.0.mask": torch.ones(4, 4, dtype=torch.bool),
    "layers.0.table": torch.arange(9, dtype=torch.uint8),
    "layers.0.attn.rotary_emb.inv_freq": torch.rand(4),
    "layers.0.rotary_pos_emb.inv_freq": torch.rand(4),
    "layers.0.attn.rope.original_inv_freq": torch.rand(4),
    "rotary.cos_cached": torch.rand(4, 4),
    "layers.0.mlp.gate.e_score_correction_bias": torch.rand(4),
    "layers.0.moe.expert_bias": torch.rand(4),
}
WEIGHTS = {"a.weight": torch.randn(5, 3), "b.weight": torch.randn(4), "b.bias": torch.randn(4)}


def _moved(tensors: dict[str, torch.Tensor], by: float) -> dict[str, torch.Tensor]:
    """Every floating tensor moved, buffers most, so that a region would lie in them were they counted."""
    moved = {n: t + (9.0 if n in BUFFERS else by) if t.is_floating_point() else t + 0 for n, t in tensors.items()}
    return moved


def _same(file: Path, expected: dict[str, torch.Tensor]) -> bool:
    stored = load_file(file)
    return all(name in stored and torch.equal(stored[name], value) for name, value in expected.items())


@pytest.mark.parametrize("shards", [1, 3])
def test_by_name_where_no_class_is_known(tmp_path: Path, shards: int) -> None:
    """Neither in D nor in a region; the fused checkpoint has them all, as the backbone has them."""
    base = write(tmp_path / "base", {**WEIGHTS, **BUFFERS}, shards)
    tuned = write(tmp_path / "tuned", _moved({**WEIGHTS, **BUFFERS}, 0.1), shards)
    kept = _moved(BUFFERS, 1.0)
    backbone = write(tmp_path / "backbone", {**WEIGHTS, **kept}, shards)
    region = identify(base, {"t": tuned}, percent=100)["t"]
    assert region.total == sum(t.numel() for t in WEIGHTS.values())
    assert region.positions.keys() == WEIGHTS.keys()
    fuse(base, {"t": tuned}, tmp_path / "plain", regions={"t": region})
    assert _same(tmp_path / "plain/model.safetensors", BUFFERS)
    fuse(base, {"t": tuned}, tmp_path / "fused", backbone=backbone, regions={"t": region})
    assert _same(tmp_path / "fused/model.safetensors", kept)


def test_a_buffer_that_the_backbone_lacks_comes_from_the_base(tmp_path: Path) -> None:
    """Older files hold what newer ones leave out; sharded output lists it in its index."""
    base = write(tmp_path / "base", {**WEIGHTS, **BUFFERS})
    tuned = write(tmp_path / "tuned", _moved(WEIGHTS, 0.1))
    fuse(base, {"t": tuned}, tmp_path / "fused", backbone=tuned, max_shard_size=60)
    found = open_checkpoint(tmp_path / "fused")
    assert found.tensors.keys() == WEIGHTS.keys()
    assert found.others.keys() == BUFFERS.keys()
    assert all(np.array_equal(found.raw(n), BUFFERS[n].numpy().reshape(-1)) for n in BUFFERS)


def _minimax(folder: Path) -> Any:
    """Linear attention, whose rates of decay are buffers under names of their own."""
    torch.manual_seed(0)
    config = MiniMaxConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, num_local_experts=2, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return model


def test_by_the_class_where_a_name_leaves_a_doubt(tmp_path: Path) -> None:
    """MiniMax: no pattern knows its buffers, the class does; with its configuration gone they count."""
    model = _minimax(tmp_path)
    found = open_checkpoint(tmp_path)
    assert any(name.endswith("slope_rate") for name in found.others)
    assert found.total == sum(parameter.numel() for parameter in model.parameters())
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path).total > found.total


def test_parameters_with_names_of_their_own_count(tmp_path: Path) -> None:
    """Mamba's A_log, D and dt_proj; gpt-oss's sinks."""
    for kind in ("mamba", "gpt_oss"):
        found = open_checkpoint(zoo.base(tmp_path / kind, kind))
        assert found.total == sum(parameter.numel() for parameter in zoo.network(kind).parameters())


def test_what_the_class_does_not_know_never_counts(tmp_path: Path) -> None:
    """A tensor of another library's, under a name of its own."""
    file = zoo.base(tmp_path, "llama") / "model.safetensors"
    total = open_checkpoint(tmp_path).total
    save_file({**load_file(file), "model.layers.0.observer_scale": torch.ones(8)}, file, metadata={"format": "pt"})
    found = open_checkpoint(tmp_path)
    assert found.total == total
    assert list(found.others) == ["model.layers.0.observer_scale"]


def test_without_transformers_names_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class cannot be asked; what no pattern knows is taken for a parameter."""
    _minimax(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "cpift.method.rehearsal", None)
    assert any(name.endswith("slope_rate") for name in open_checkpoint(tmp_path).tensors)
