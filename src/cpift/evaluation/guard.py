"""Loss of a model on a fixed, neutral English text: has fine-tuning cost it general ability?

The text was written for this project and ships with it (``neutral.txt``); it is no task, and no model is trained on it.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

import torch

from cpift.train import accelerator
from cpift.train.models import load_model, load_tokenizer

WINDOW = 512  # tokens that are read together, fewer where the model has fewer positions


def text() -> str:
    """The neutral text."""
    return (files("cpift.evaluation") / "neutral.txt").read_text(encoding="utf-8")


class NeutralLoss(TypedDict):
    """A model's loss on the neutral text.

    Attributes:
        loss: mean over all tokens, nats.
        items: mean of each paragraph.
        tokens: of each paragraph.
        precision: as in :class:`cpift.evaluation.task.Score`.
    """

    loss: float
    items: list[float]
    tokens: list[int]
    precision: str


@accelerator.frees_memory
def neutral_loss(
    model: str | Path,
    *,
    trust_remote_code: bool = False,
    base: Path | None = None,
    attention: str | None = None,
    device_map: str | None = None,
) -> NeutralLoss:
    """Mean loss in nats over the tokens of the neutral text, as plain text without a chat template.

    Each paragraph is read on its own.

    Args:
        model: a checkpoint folder, or an adapter.
        trust_remote_code: run code that the model's repository carries.
        base: of an adapter; None: the one that it names.
        attention: transformers' name of how attention is computed; None: its choice.
        device_map: how transformers spreads the layers over several devices; None: one device.
    """
    path = Path(model)
    network = load_model(path, trust_remote_code, base, attention, "float32", device_map)
    tokenizer = load_tokenizer(path, trust_remote_code, base=base)
    accelerator.place(network)
    window = min(WINDOW, int(getattr(network.config, "max_position_embeddings", None) or WINDOW))
    items, tokens = [], []
    with torch.inference_mode(), accelerator.scoring_autocast(network):
        for paragraph in text().split("\n\n"):
            ids = torch.tensor([tokenizer(paragraph.strip())["input_ids"]], device=network.device)
            total = count = 0.0
            for start in range(0, ids.shape[1] - 1, window):
                part = ids[:, start : start + window + 1]
                logits = network(input_ids=part[:, :-1]).logits[0].float()
                total += float(torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum"))
                count += part.shape[1] - 1
            items.append(total / count)
            tokens.append(int(count))
    mean = sum(i * t for i, t in zip(items, tokens, strict=True)) / sum(tokens)
    return {"loss": mean, "items": items, "tokens": tokens, "precision": accelerator.scoring_precision()}


def digest() -> str:
    """Of the neutral text: 32 hex digits."""
    return hashlib.sha256(text().encode()).hexdigest()[:32]
