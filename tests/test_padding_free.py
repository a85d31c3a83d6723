"""Rows one behind the other without padding: the same losses, and a model that mixes them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file

from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.train.fine_tune import fine_tune
from cpift.train.models import load_model
from cpift.train.padding_free import check_rows_apart
from cpift.train.spec import TrainSpec

SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "bf16": False,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "optim": "sgd",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("padding_free") / "base")


def test_losses_weights_and_tokens_are_those_of_padded_batches(base: Path, tmp_path: Path) -> None:
    """Of rows of unlike length, cut at ``max_length``; tokens without padding are counted in both."""
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("double", 8, 0)]
    assert len({len(row.input_ids) for row in rows}) > 2
    done = [
        fine_tune(
            base, rows, tmp_path / str(free), TrainSpec({**SETTINGS, "max_length": 64, "padding_free": free}, 3, 0)
        )
        for free in (False, True)
    ]
    padded, free = ([loss for _, loss, _ in one.losses] for one in done)
    assert np.allclose(padded, free, atol=1e-4)
    assert done[0].tokens == done[1].tokens
    before, after = (load_file(tmp_path / str(free) / "model.safetensors") for free in (False, True))
    assert all(np.allclose(before[name], after[name], atol=1e-6) for name in before)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_keeps_rows_apart_passes(base: Path, attention: str) -> None:
    network = load_model(base, False, None, attention).train()
    check_rows_apart(network)
    assert network.training


def test_a_model_that_reads_on_over_a_border_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has no use for the positions: the second row sees the first."""
    network = load_model(base)
    forward = network.forward

    def without_positions(input_ids: torch.Tensor, use_cache: bool, **_: Any) -> Any:
        return forward(input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(network, "forward", without_positions)
    with pytest.raises(CpiftError, match=r"^training\.padding_free: .* \(a row sees the one before it\); leave it out"):
        check_rows_apart(network)


def test_one_that_takes_no_positions_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_model(base)
    monkeypatch.setattr(network, "forward", lambda input_ids: None)
    with pytest.raises(CpiftError, match=r"^training\.padding_free: this model does not keep"):
        check_rows_apart(network)


def test_an_anchor_reads_padded_rows(base: Path, tmp_path: Path) -> None:
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("double", 4, 0)]
    spec = TrainSpec({**SETTINGS, "padding_free": True}, 1, 0, anchor=0.1)
    with pytest.raises(CpiftError, match=r"^protect\.anchor: is not combined with training\.padding_free"):
        fine_tune(base, rows, tmp_path / "o", spec)
