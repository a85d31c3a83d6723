"""A pull towards the model before: the Kullback–Leibler divergence on the prompts, where the answers are not trained.

No old row is needed. On each token of a row that the loss is not taken on, the trained model is to predict what the
model before predicts there (learning without forgetting, arXiv:1606.09282, on the prompts of the new rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cpift.data.encoding import IGNORED
from cpift.typing import Network

if TYPE_CHECKING:
    from collections.abc import Mapping


def prompt_divergence(
    logits: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Mean of KL(reference ‖ model) over the untrained tokens of a batch, in nats.

    Args:
        logits: of the trained model, (rows, tokens, vocabulary).
        reference: of the model before, the same shape.
        labels: token ids, −100 where the loss is not taken, (rows, tokens).
        mask: 1 where there is a token, 0 for padding, (rows, tokens).

    Returns:
        A scalar in fp32; 0 where no token is left.
    """
    counted = (labels[:, 1:] == IGNORED) & mask[:, 1:].bool()
    ours = torch.log_softmax(logits[:, :-1][counted].float(), dim=-1)
    theirs = torch.log_softmax(reference[:, :-1][counted].float(), dim=-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    return divergence.sum() / counted.sum().clamp(min=1)


@dataclass(frozen=True)
class Anchor:
    """The model before, and how strongly the trained one is held to it.

    Attributes:
        model: the model before; it is not trained.
        weight: β, factor of the divergence beside the loss.
    """

    model: Any
    weight: float

    def loss(self, network: Network, inputs: Mapping[str, Any], num_items: Any, accumulation: int) -> torch.Tensor:
        """Mean loss of the trained tokens, plus β times the divergence on the others.

        Args:
            network: the trained model.
            inputs: a batch with ``input_ids``, ``attention_mask`` and ``labels``.
            num_items: trained tokens of the whole optimizer step; None: those of this batch.
            accumulation: batches of an optimizer step.
        """
        labels, mask = inputs["labels"], inputs["attention_mask"]
        given = {"input_ids": inputs["input_ids"], "attention_mask": mask, "use_cache": False}
        logits = network(**given).logits
        with torch.no_grad():
            reference = self.model(**given).logits
        target = labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), target, ignore_index=IGNORED, reduction="sum"
        )
        count = (target != IGNORED).sum() if num_items is None else torch.as_tensor(num_items)
        # With num_items the Trainer leaves accumulation to the loss: each batch gives its share of the step's mean.
        share = 1 if num_items is None else accumulation
        divergence = prompt_divergence(logits, reference, labels, mask) / share
        return losses / count.clamp(min=1).to(losses.device) + self.weight * divergence
