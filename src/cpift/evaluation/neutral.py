"""Loss of a model on a fixed, neutral English text: has fine-tuning cost it general ability?

The text was written for this project and ships with it (``neutral.txt``); it is no task, and no model is trained on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import torch

from cpift.evaluation.batching import forced_room, in_batches
from cpift.evaluation.task import Score
from cpift.metrics.loss import LOSS
from cpift.typing import Network, Tokenizer

WINDOW = 512  # tokens that are read together, fewer where the model has fewer positions


def text() -> str:
    """The neutral text."""
    return (files("cpift.evaluation") / "neutral.txt").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Part:
    """Neighbouring tokens of a paragraph that are read together.

    Attributes:
        paragraph: its number, from 0.
        first: number of predicted tokens of the whole text before it.
        ids: of its tokens, the first of which is not predicted.
    """

    paragraph: int
    first: int
    ids: list[int]


def parts(network: Network, tokenizer: Tokenizer) -> list[Part]:
    """The text as token ids, without a chat template; each paragraph is read on its own.

    Args:
        network: the model.
        tokenizer: its tokenizer.
    """
    window, made, first = window_of(network), list[Part](), 0
    for number, paragraph in enumerate(text().split("\n\n")):
        ids = list(tokenizer(paragraph.strip())["input_ids"])
        for start in range(0, len(ids) - 1, window):
            made.append(Part(number, first, ids[start : start + window + 1]))
            first += len(made[-1].ids) - 1
    return made


def window_of(network: Network) -> int:
    """Tokens that the model reads at once."""
    return min(WINDOW, int(getattr(network.config, "max_position_embeddings", None) or WINDOW))


def score_text(
    network: Network, tokenizer: Tokenizer, see: Callable[[Part, torch.Tensor], None] = lambda part, logits: None
) -> Score:
    """Mean loss in nats over the tokens of the text; an item is the mean of a paragraph.

    Args:
        network: the model.
        tokenizer: its tokenizer.
        see: called with each part and the logits of its predicted tokens, (tokens, vocabulary), in the model's dtype.
    """
    read = parts(network, tokenizer)
    paragraphs = 1 + max(part.paragraph for part in read)
    totals, counts = [0.0] * paragraphs, [0] * paragraphs
    pad = tokenizer.pad_token_id or 0

    def work(batch: list[int]) -> None:
        chosen = [read[i].ids for i in batch]
        width = max(map(len, chosen)) - 1
        ids = torch.tensor([ids[:-1] + [pad] * (width - len(ids) + 1) for ids in chosen], device=network.device)
        mask = torch.tensor([[1] * (len(ids) - 1) + [0] * (width - len(ids) + 1) for ids in chosen])
        logits = network(input_ids=ids, attention_mask=mask.to(network.device)).logits
        for i, row in zip(batch, logits, strict=True):
            part = read[i]
            target = torch.tensor(part.ids[1:], device=network.device)
            own = row[: len(target)]
            totals[part.paragraph] += float(torch.nn.functional.cross_entropy(own.float(), target, reduction="sum"))
            counts[part.paragraph] += len(target)
            see(part, own)

    in_batches([len(part.ids) - 1 for part in read], forced_room(network), work)
    return Score(
        LOSS.name, sum(totals) / sum(counts), [t / c for t, c in zip(totals, counts, strict=True)], list(counts)
    )
