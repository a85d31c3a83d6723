"""The pull towards the model before: its value against torch's own divergence, and what it does to a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from tiny_run import one_thread
from transformers import AutoModelForCausalLM

from cpift.data.encoding import encode
from cpift.train.anchor import Anchor, prompt_divergence
from cpift.train.fine_tune import fine_tune
from cpift.train.models import load_tokenizer
from cpift.train.spec import TrainSpec

SETTINGS = {"per_device_train_batch_size": 2, "bf16": False, "learning_rate": 1e-2}


def test_the_divergence_is_torchs_over_the_untrained_tokens() -> None:
    torch.manual_seed(0)
    logits, reference = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    labels = torch.tensor([[-100, -100, -100, 4, 2], [-100, -100, 1, 2, -100]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    positions = [(0, 0), (0, 1), (1, 0)]  # whose next token is there and is not trained
    expected = sum(
        torch.nn.functional.kl_div(
            logits[row, at].log_softmax(-1), reference[row, at].log_softmax(-1), reduction="sum", log_target=True
        )
        for row, at in positions
    ) / len(positions)
    assert prompt_divergence(logits, reference, labels, mask) == pytest.approx(float(expected), rel=1e-6)
    assert prompt_divergence(logits, reference, torch.zeros(2, 5).long(), mask) == 0


def test_the_loss_is_the_mean_of_the_trained_tokens_plus_the_divergence(tmp_path: Path) -> None:
    ours = AutoModelForCausalLM.from_pretrained(tiny.base(tmp_path / "a", seed=1))
    before = AutoModelForCausalLM.from_pretrained(tiny.base(tmp_path / "b", seed=2))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([[-100, -100, 7, 8, 9]])}
    with torch.no_grad():
        plain = ours(**batch).loss
        held = prompt_divergence(ours(ids).logits, before(ids).logits, batch["labels"], batch["attention_mask"])
        loss = Anchor(before, 0.5).loss(ours, batch, None, 1)
        half = Anchor(before, 0.5).loss(ours, batch, 6, 2)  # one of two batches of a step with six trained tokens
    assert float(loss) == pytest.approx(float(plain + 0.5 * held), rel=1e-5)
    assert float(half) == pytest.approx(float(plain / 2 + 0.25 * held), rel=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """The same training with and without an anchor, by its weight."""
    place = tmp_path_factory.mktemp("anchor")
    base = tiny.base(place / "base")
    tokenizer = load_tokenizer(base)
    rows = [encode(row, tokenizer, 64) for row in tiny.rows("reverse", 8, 0)]
    folders = {}
    for weight in (0.0, 20.0):
        folders[weight] = place / f"{weight}"
        with one_thread():
            fine_tune(base, rows, folders[weight], TrainSpec(SETTINGS, 8, 0, anchor=weight))
    return {**folders, -1.0: base}


def test_an_anchored_model_stays_nearer_to_the_model_before_on_the_prompts(trained: dict[float, Path]) -> None:
    tokenizer = load_tokenizer(trained[0.0])
    row = encode(tiny.rows("reverse", 1, 5)[0], tokenizer, 64)
    ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
    models = {weight: AutoModelForCausalLM.from_pretrained(folder) for weight, folder in trained.items()}
    with torch.no_grad():
        logits = {weight: model(ids).logits for weight, model in models.items()}
    away = {w: float(prompt_divergence(logits[w], logits[-1.0], labels, torch.ones_like(ids))) for w in (0.0, 20.0)}
    assert away[20.0] < 0.5 * away[0.0]
