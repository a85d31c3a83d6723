"""Zero updates: rows of tokens never seen, parameters not trained, half precision; each named for what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import write

from cpift.method.identify import identify
from cpift.runs.stages.identify import region_warnings

EMBEDDING, LAYER = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


def pair(
    place: Path, seen: int, trained: float, dtype: torch.dtype = torch.float32, by: float = 1e-3
) -> tuple[list[str], dict[str, object]]:
    """Warnings and statistics where ``seen`` of 40 rows of the embedding moved, and the first part of a layer."""
    torch.manual_seed(0)
    base = {EMBEDDING: torch.randn(40, 10), LAYER: torch.randn(20, 20)}
    task = {n: t.clone() for n, t in base.items()}
    task[EMBEDDING][:seen] += by
    task[LAYER].view(-1)[: int(trained * 400)] += by
    base, task = ({n: t.to(dtype) for n, t in tensors.items()} for tensors in (base, task))
    region = identify(write(place / "base", base), {"t": write(place / "task", task)}, "1")["t"]
    assert region.statistics["zero_share"] == sum(int((base[n] == task[n]).sum()) for n in base) / 800
    return [found.text for found in region_warnings("t", region)], dict(region.statistics)


def test_no_warning_where_all_moves(tmp_path: Path) -> None:
    found, statistics = pair(tmp_path, 40, 1.0)
    assert found == []
    assert "dtype" not in statistics, "nothing is looked for where few updates are zero"


def test_rows_of_tokens_never_seen_are_no_loss_of_precision(tmp_path: Path) -> None:
    """An fp32 probe: 30 of 40 rows of the embedding without any update, 300 of 800 elements."""
    found, statistics = pair(tmp_path, 10, 1.0)
    assert (statistics["zero_share_unseen"], statistics["zero_share_untrained"]) == (300 / 800, 0.0)
    (warning,) = found
    assert "38% of the updates are in rows of the embedding of tokens never seen" in warning
    assert "half precision" not in warning


def test_half_precision_is_named_where_it_hides_updates(tmp_path: Path) -> None:
    """bf16 shows a step of 1e-3 on the smallest weights only; fp32 would show all."""
    found, statistics = pair(tmp_path, 40, 1.0, torch.bfloat16)
    assert statistics["dtype"] == "BF16"
    (warning,) = found
    assert "exactly zero; half precision hides them" in warning


def test_rows_that_half_precision_may_hide_are_not_called_unseen(tmp_path: Path) -> None:
    """All was trained, by less than bf16 can show: whole rows and parameters look untouched."""
    found, _ = pair(tmp_path, 40, 1.0, torch.bfloat16, by=1e-6)
    assert "half precision hides them" in found[0]
    assert not any("never seen" in text or "not trained" in text for text in found)


def test_parameters_that_were_not_trained(tmp_path: Path) -> None:
    """Such as all but the biases, or what an adapter leaves alone."""
    found, statistics = pair(tmp_path, 40, 0.0)
    assert statistics["zero_share_untrained"] == 0.5
    assert found == ["t: 50% of the updates are in parameters that were not trained, with no update at all"]


def test_scattered_zeros_of_an_fp32_checkpoint(tmp_path: Path) -> None:
    """Neither rows nor whole parameters: the training lost them, not the file."""
    (warning,), _ = pair(tmp_path, 40, 0.5)
    assert "25% of the updates are exactly zero, though the checkpoint is stored in fp32" in warning


@pytest.mark.parametrize("chunk_rows", [3, 40])
def test_rows_are_counted_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    """An embedding larger than what is read at a time."""
    monkeypatch.setattr("cpift.method.zero_updates.BLOCK", 10 * chunk_rows)
    assert pair(tmp_path, 11, 1.0)[1]["zero_share_unseen"] == 290 / 800
