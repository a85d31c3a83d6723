"""Loss of a model on a fixed, neutral English text: has fine-tuning cost it general ability?

The text was written for this project and ships with it (``neutral.txt``); it is no task, and no model is trained on it.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

WINDOW = 512  # tokens that are read together, fewer where the model has fewer positions


def text() -> str:
    """The neutral text."""
    return (files("cpift.evaluation") / "neutral.txt").read_text(encoding="utf-8")


def neutral_loss(model: str | Path, *, trust_remote_code: bool = False, base: Path | None = None) -> dict[str, Any]:
    """Mean loss in nats over the tokens of the neutral text, as plain text without a chat template, and their number.

    ``items``: the mean loss of each paragraph; each is read on its own. ``precision``: as in
    :class:`cpift.evaluation.scores.Score`. ``base``: of an adapter; by default the one that it names.
    """
    from cpift.train import accelerator

    found: dict[str, Any] = accelerator.frees_memory(_neutral_loss)(Path(model), trust_remote_code, base)
    return found | {"precision": accelerator.scoring_precision()}


def _neutral_loss(path: Path, trust_remote_code: bool, base: Path | None) -> dict[str, Any]:
    import torch

    from cpift.train import accelerator
    from cpift.train.models import load_model, load_tokenizer

    network = load_model(path, trust_remote_code, base)
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
    return {"loss": mean, "items": items, "tokens": tokens}


def digest() -> str:
    """Of the neutral text: 32 hex digits."""
    import hashlib

    return hashlib.sha256(text().encode()).hexdigest()[:32]
