"""OSF in an addition, against PEFT's own layers trained by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny_run import one_thread
from transformers import AutoModelForCausalLM

from cpift.data.encoding import encode
from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.runs.alternatives import ALTERNATIVES, check_alternatives
from cpift.train import orthogonal
from cpift.train.fine_tune import fine_tune
from cpift.train.orthogonal import with_osf
from cpift.train.spec import TrainSpec

NAME = "model.layers.0.mlp.up_proj.weight"
TASKS = {"old": {"train": "a.jsonl", "eval": 1}, "new": {"train": "b.jsonl", "eval": 1}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("osf") / "base")


def train(base: Path, out: Path, steps: int, **more: Any) -> dict[str, torch.Tensor]:
    """Plain gradient descent on one batch of all rows."""
    training = {
        "per_device_train_batch_size": 4, "bf16": False, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "save_steps": 1,
    }  # fmt: skip
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", 4, 0)]
    with one_thread():
        fine_tune(base, rows, out, TrainSpec(training, steps, 0, osf=0.5), **more)
    return load_file(out / "model.safetensors")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_it_is_pefts_osf_step_by_step(base: Path, tmp_path: Path) -> None:
    """The same rows, loss and rate in a loop of its own; the main directions stay, the rest moves."""
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.OSFConfig(task_type="CAUSAL_LM", effective_rank=0.5)
    )
    rows = [encode(row, tiny.tokenizer()) for row in tiny.rows("reverse", 4, 0)]
    trained = sum(row.trained for row in rows)
    for _ in range(3):
        model.zero_grad()
        for row in rows:
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            (model(input_ids=ids, labels=labels).loss * row.trained / trained).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad
    expected, found = model.merge_and_unload().state_dict(), train(base, tmp_path / "out", 3)
    before = load_file(base / "model.safetensors")
    assert found.keys() == before.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
    moved = (found[NAME] - before[NAME]).double()
    left, _, right = torch.linalg.svd(before[NAME].double(), full_matrices=False)
    half = len(right) // 2
    assert moved.norm() > 1e-3
    assert (left[:, :half].T @ moved).norm() < 1e-4 * moved.norm()
    assert (moved @ right[:half].T).norm() < 1e-4 * moved.norm()
    assert torch.equal(found["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_cut_off_it_resumes_to_the_same_bits(base: Path, tmp_path: Path) -> None:
    whole = train(base, tmp_path / "whole", 3)

    def cut(event: Any) -> None:
        if event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "cut", 3, work=tmp_path / "work", tick=cut)
    assert list((tmp_path / "work").glob("checkpoint-*"))
    again = train(base, tmp_path / "cut", 3, work=tmp_path / "work")
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


def test_missing_peft_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonal, "find_spec", lambda name: None)
    for call in (check_alternatives, lambda: with_osf(None, 0.5)):
        with pytest.raises(CpiftError, match=r'OSF needs PEFT; pip install "cpift\[adapters\]"'):
            call()


def test_it_is_one_of_the_other_ways_and_refused_where_it_cannot_be() -> None:
    asked = {"model": "m", "tasks": TASKS, "arrivals": ["new"]}
    (osf,) = (alternative for alternative in ALTERNATIVES if alternative.name == "osf")
    changed = Recipe.parse(asked).changed(osf.changes(Recipe.parse(asked)))
    assert changed.arrivals is not None
    assert changed.arrivals.osf == 0.5
    for parts, words in (
        ({}, "protect.freeze; set it to false"),
        ({"protect": {"freeze": False, "every": 3, "average": 0.75}}, "protect.every; leave it out"),
        ({"protect": {"freeze": False}, "arrivals": {"order": ["new"], "train": "inside"}}, "arrivals.train"),
    ):
        with pytest.raises(CpiftError, match=words):
            Recipe.parse({**asked, **parts}).changed({"arrivals.osf": 0.5})
    assert np.isclose(changed.protect.average, 1)
