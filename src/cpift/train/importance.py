"""How much each parameter of a model matters for rows: by gradients of their losses.

``fisher``: the empirical Fisher information, (1/R) Σᵣ (∂Lᵣ/∂θ)², where Lᵣ is the *sum* of the negative log-likelihoods of
row r's trained tokens, in nats: its log-likelihood given what is not trained on. ``magnitude_gradient``: |θ·g|, where
g is the gradient of the *mean* of these over all trained tokens of all rows. Both without dropout, in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from cpift.data.encoding import IGNORED, Encoded, encode_all
from cpift.data.row_checks import Row
from cpift.data.templates import ChatSettings
from cpift.errors import CpiftError
from cpift.train import accelerator
from cpift.train.limits import check_encoded, limits_of
from cpift.train.models import load_model, load_tokenizer
from cpift.typing import Network

Tick = Callable[[int, int], None]
Importance = Callable[[Any, Sequence[Encoded], Tick], dict[str, torch.Tensor]]
"""From a model and rows to scores by parameter."""


@dataclass(frozen=True)
class Measured:
    """What scores were taken on.

    Attributes:
        rows: number of rows.
        tokens: their trained tokens.
        seen: all their tokens.
        left_out: rows left out, as ``max_length`` leaves them no trained token.
        warnings: what a user should know of the rows.
    """

    rows: int
    tokens: int
    seen: int
    left_out: int
    warnings: list[str]


@accelerator.frees_memory
def write_importance(
    model: Path,
    rows: Sequence[Row],
    score: Importance,
    out: Path,
    max_length: int | None = None,
    tick: Tick = lambda done, rows: None,
    *,
    chat: ChatSettings | None = None,
    trust_remote_code: bool = False,
    source: str = "--rows",
) -> Measured:
    """Write a checkpoint that holds each parameter's score in its place, fp32, under the names of the model's files.

    Memory: the model, its gradients and the scores, in fp32; one row at a time.

    Args:
        model: folder of the checkpoint, with its tokenizer.
        rows: checked rows.
        score: one of this module's functions.
        out: an empty folder.
        max_length: tokens after which a row is cut.
        tick: called with the number of rows done, and of all.
        chat: chat template and end token in place of the tokenizer's own.
        trust_remote_code: may code that lies in the folder be run?
        source: of the rows, for messages.

    Raises:
        CpiftError: no row with a trained token is left; a row that the model has no room for.
    """
    network, tokenizer = load_model(model, trust_remote_code), load_tokenizer(model, trust_remote_code, chat)
    encoded, left_out = encode_all(rows, tokenizer, max_length)
    if not encoded:
        raise CpiftError(
            f"{source}: no trained token is left within {max_length} tokens of any row; raise the max_length"
        )
    limits = limits_of(network.config, [name for name, _ in network.named_parameters()])
    warnings = [warning.text for warning in check_encoded(encoded, limits, tokenizer, f"{source}: row")]
    accelerator.place(network)
    network.eval()
    scores = score(network, encoded, tick)
    network.save_pretrained(out, state_dict={name: values.cpu() for name, values in scores.items()})
    return Measured(
        len(encoded),
        sum(row.trained for row in encoded),
        sum(len(row.input_ids) for row in encoded),
        left_out,
        warnings,
    )


def squared_gradients(
    network: Network, rows: Sequence[Encoded], tick: Tick = lambda done, rows: None
) -> dict[str, torch.Tensor]:
    """Empirical Fisher information by parameter: the mean over rows of the squared gradient of each row's summed loss.

    Args:
        network: a causal language model in fp32.
        rows: each with at least one trained token.
        tick: called with the number of rows done, and of all.
    """
    parameters = dict(network.named_parameters())
    scores = {name: torch.zeros_like(parameter.data) for name, parameter in parameters.items()}
    for done, row in enumerate(rows, start=1):
        network.zero_grad(set_to_none=True)
        torch.autograd.backward(_summed_loss(network, row))
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                scores[name].addcmul_(parameter.grad, parameter.grad, value=1 / len(rows))
        tick(done, len(rows))
    network.zero_grad(set_to_none=True)
    return scores


def weighted_gradients(
    network: Network, rows: Sequence[Encoded], tick: Tick = lambda done, rows: None
) -> dict[str, torch.Tensor]:
    """|θ·g| by parameter, g the gradient of the mean loss over all trained tokens of all rows.

    Args:
        network: a causal language model in fp32.
        rows: each with at least one trained token.
        tick: called with the number of rows done, and of all.
    """
    tokens = sum(row.trained for row in rows)
    network.zero_grad(set_to_none=True)
    for done, row in enumerate(rows, start=1):
        torch.autograd.backward(_summed_loss(network, row) / tokens)
        tick(done, len(rows))
    scores = {
        name: torch.zeros_like(parameter.data) if parameter.grad is None else (parameter.data * parameter.grad).abs()
        for name, parameter in network.named_parameters()
    }
    network.zero_grad(set_to_none=True)
    return scores


SCORES: Mapping[str, Importance] = {"fisher": squared_gradients, "magnitude_gradient": weighted_gradients}


def _summed_loss(network: Network, row: Encoded) -> torch.Tensor:
    ids, labels = (torch.tensor([values], device=network.device) for values in (row.input_ids, row.labels))
    logits = network(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED, reduction="sum")
