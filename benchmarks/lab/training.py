"""The training loop: AdamW on the flat vector, with some of its elements frozen, and how often a skill is done right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from lab.network import Network
from lab.rows import Rows, joined

BATCH = 16
WARM_UP = 10  # steps
FISHER_BATCH = 4  # rows whose gradient is squared
Penalty = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Gives what is added to the loss, from the parameters, the logits of a batch and its characters."""
Projection = Callable[[torch.Tensor], torch.Tensor]
"""Gives the part of a gradient or an update that is allowed, (D,)."""


@dataclass(frozen=True)
class Mixture:
    """What a batch is drawn from.

    Attributes:
        new: rows of the task that arrives.
        kept: rows of the earlier tasks; they make up half of every batch. None: there are none.
    """

    new: Rows
    kept: Rows | None = None

    def batch(self, rng: torch.Generator, size: int = BATCH) -> Rows:
        """Rows drawn with replacement."""
        from_kept = size // 2 if self.kept is not None else 0
        rows = _drawn(self.new, size - from_kept, rng)
        if self.kept is None:
            return rows
        return joined([rows, _drawn(self.kept, from_kept, rng)])


def _drawn(rows: Rows, size: int, rng: torch.Generator) -> Rows:
    return rows.take(torch.randint(0, len(rows), (size,), generator=rng).to(rows.ids.device))


def loss_of(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Mean cross-entropy over the characters that count."""
    counted = rows.counted[:, 1:]
    return functional.cross_entropy(logits[:, :-1][counted], rows.ids[:, 1:][counted])


def train(
    network: Network,
    start: torch.Tensor,
    draw: Callable[[torch.Generator], Rows],
    *,
    steps: int,
    rate: float,
    seed: int,
    frozen: torch.Tensor | None = None,
    penalty: Penalty | None = None,
    project: Projection | None = None,
) -> tuple[torch.Tensor, int]:
    """Train all elements that are not frozen.

    Gradients of frozen elements are zero before clipping, and their values are written back after each step, as in
    :func:`cpift.freeze`.

    Args:
        network: the model's shape.
        start: parameters to start from, left as they are.
        draw: gives a batch.
        steps: optimizer steps.
        rate: highest learning rate; warmed up, then falling linearly to zero.
        seed: of the batches.
        frozen: elements to keep, bool (D,); None: none.
        penalty: added to the loss.
        project: keeps the allowed part of each gradient and, as AdamW's step leaves it, of the whole update.

    Returns:
        The parameters after the last step, and the number of characters trained on, padding left out.
    """
    flat = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([flat], lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    rng, seen = torch.Generator().manual_seed(seed), 0
    for step in range(steps):
        factor = min(1.0, (step + 1) / min(WARM_UP, steps)) * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = rate * factor
        rows = draw(rng)
        seen += int((rows.ids != 0).sum())
        logits = network.logits(flat, rows.ids)
        loss = loss_of(logits, rows)
        if penalty is not None:
            loss = loss + penalty(flat, logits, rows.ids)
        loss.backward()
        assert flat.grad is not None
        if frozen is not None:
            flat.grad[frozen] = 0
        if project is not None:
            flat.grad = project(flat.grad)
        torch.nn.utils.clip_grad_norm_([flat], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if frozen is not None:
            with torch.no_grad():
                torch.where(frozen, start, flat, out=flat.data)
        if project is not None:
            with torch.no_grad():
                flat.copy_(start + project(flat - start))
    return flat.detach(), seen


def gradient(network: Network, flat: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Gradient of the mean loss over all rows, (D,)."""
    leaf = torch.nn.Parameter(flat.clone())
    loss_of(network.logits(leaf, rows.ids), rows).backward()
    assert leaf.grad is not None
    return leaf.grad


def fisher(network: Network, flat: torch.Tensor, rows: Rows, batch: int = FISHER_BATCH) -> torch.Tensor:
    """Sum of the squared gradients of small batches, (D,): the usual estimate of the diagonal Fisher information."""
    total = torch.zeros_like(flat)
    for index in torch.arange(len(rows), device=flat.device).split(batch):
        total += gradient(network, flat, rows.take(index)).square()
    return total


@torch.inference_mode()
def right(network: Network, flat: torch.Tensor, rows: Rows) -> np.ndarray:
    """Which rows are answered right: given the right characters before it, each one is the argmax; bool (rows,)."""
    best = network.logits(flat, rows.ids)[:, :-1].argmax(-1)
    correct = (best == rows.ids[:, 1:]) | ~rows.counted[:, 1:]
    return np.asarray(correct.all(1).cpu().numpy())


@torch.inference_mode()
def loss_on(network: Network, flat: torch.Tensor, rows: Rows) -> float:
    """Mean loss over the characters that count, in nats."""
    return float(loss_of(network.logits(flat, rows.ids), rows))


@torch.inference_mode()
def drift(network: Network, base: torch.Tensor, flat: torch.Tensor, rows: Rows) -> float:
    """Mean KL(base || model) over the characters that count, in nats."""
    counted = rows.counted[:, 1:]
    before, after = (network.logits(v, rows.ids)[:, :-1][counted].log_softmax(-1) for v in (base, flat))
    return float((before.exp() * (before - after)).sum(-1).mean())
