"""The methods of the arrivals: what is frozen, what is added to the loss, and what is done with the model afterwards.

A new one is one line of ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from lab import masks
from lab.network import Network
from lab.rows import Rows
from lab.training import FISHER_BATCH, Mixture, Penalty, Projection, fisher, gradient, train

PROBE_STEPS, PROBE_RATE = 60, 1.5e-3
FISHER_ROWS = 128


@dataclass
class Arrival:
    """What a method may look at when a task arrives.

    Attributes:
        network: the model's shape.
        before: the model that it arrives at.
        new: the task's training rows.
        kept: rows kept of the earlier tasks; None: there are none.
        updates: of the earlier tasks: model after minus model before their arrival.
        fishers: their Fisher information, measured at the end of their arrival.
        seed: of what is drawn at random.
        extra_tokens: characters trained on before the training itself; added to by masks that need a probe.
    """

    network: Network
    before: torch.Tensor
    new: Rows
    kept: Rows | None
    updates: list[torch.Tensor]
    fishers: list[torch.Tensor]
    seed: int
    extra_tokens: int = field(default=0)


Mask = Callable[[Arrival], torch.Tensor]


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        label: how tables name it.
        frozen: the elements to keep; None: all are trained.
        penalty: added to the loss.
        weight: of the new model when it is averaged with the model before; 1: no averaging.
        transplant: p of the cores that are put back after averaging; None: none are.
        needs_fisher: whether Fisher information is measured after every arrival.
        project: keeps the allowed part of each update.
        fewer_steps: steps that a probe takes out of the arrival's, so that all methods train on as many tokens.
    """

    label: str
    frozen: Mask | None = None
    penalty: Callable[[Arrival], Penalty] | None = None
    weight: float = 1.0
    transplant: float | None = None
    needs_fisher: bool = False
    project: Callable[[Arrival], Projection] | None = None
    fewer_steps: int = 0


def cores(percent: float) -> Mask:
    """The earlier tasks' core regions."""
    return lambda a: masks.union([masks.top(u.abs(), percent) for u in a.updates])


def by_chance(percent: float) -> Mask:
    """As many elements at random for each earlier task."""
    return lambda a: masks.union([masks.chance(a.before, percent, 1000 * a.seed + i) for i in range(len(a.updates))])


def by_fisher(percent: float) -> Mask:
    """The elements of the largest Fisher information for each earlier task."""
    return lambda a: masks.union([masks.top(f, percent) for f in a.fishers])


def outside(percent: float) -> Mask:
    """All but the new task's own core, which a probe finds."""

    def frozen(a: Arrival) -> torch.Tensor:
        draw = Mixture(a.new).batch
        after, seen = train(a.network, a.before, draw, steps=PROBE_STEPS, rate=PROBE_RATE, seed=a.seed + 7)
        a.extra_tokens += seen
        return ~masks.top((after - a.before).abs(), percent)

    return frozen


def outside_by_chance(percent: float) -> Mask:
    """All but as many elements at random."""
    return lambda a: ~masks.chance(a.before, percent, 1000 * a.seed + 999)


def conflict(a: Arrival) -> torch.Tensor:
    """Where old and new gradients have opposite signs; without old rows, where training would undo the updates so far."""
    new = gradient(a.network, a.before, a.new.take(torch.arange(min(256, len(a.new)))))
    if a.kept is None:
        return masks.opposed(-torch.stack(a.updates).sum(0), new)
    return masks.opposed(gradient(a.network, a.before, a.kept), new)


def close_to_before(strength: float) -> Callable[[Arrival], Penalty]:
    """KL(model before || model) on the new rows, all characters."""

    def bind(a: Arrival) -> Penalty:
        def penalty(flat: torch.Tensor, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            real = ids != 0
            with torch.no_grad():
                old = a.network.logits(a.before, ids)[real].log_softmax(-1)
            new = logits[real].log_softmax(-1)
            return strength * functional.kl_div(new, old, log_target=True, reduction="batchmean")

        return penalty

    return bind


def elastic(strength: float) -> Callable[[Arrival], Penalty]:
    """EWC (arXiv:1612.00796): strength/2 · Σ F·(θ - θ before)², F the mean squared gradient of the earlier skills."""

    def bind(a: Arrival) -> Penalty:
        information = torch.stack(a.fishers).sum(0) / (FISHER_ROWS / FISHER_BATCH)

        def penalty(flat: torch.Tensor, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return strength / 2 * (information * (flat - a.before).square()).sum()

        return penalty

    return bind


def orthogonal(share: float) -> Callable[[Arrival], Projection]:
    """As OSF (arXiv:2504.07097): matrices of the blocks alone, and no change along their largest singular directions.

    Args:
        share: of the singular directions that are kept, 0 to 1.
    """

    def bind(a: Arrival) -> Projection:
        kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, weight in a.network.tensors(a.before).items():
            if weight.dim() == 2 and "." in name:
                left, _, right = torch.linalg.svd(weight, full_matrices=False)
                rank = int(share * min(weight.shape))
                kept[name] = left[:, :rank], right[:rank]

        def project(update: torch.Tensor) -> torch.Tensor:
            allowed = torch.zeros_like(update)
            parts = a.network.tensors(allowed)
            for name, part in a.network.tensors(update).items():
                if name in kept:
                    left, right = kept[name]
                    rest = part - left @ (left.T @ part)
                    parts[name].copy_(rest - (rest @ right.T) @ right)
            return allowed

        return project

    return bind


SFA = 0.75
METHODS: dict[str, Method] = {
    "plain": Method("nothing protected"),
    "freeze_1": Method("cores frozen, 1 %", cores(1)),
    "freeze_10": Method("cores frozen, 10 %", cores(10)),
    "freeze_30": Method("cores frozen, 30 %", cores(30)),
    "freeze_50": Method("cores frozen, 50 %", cores(50)),
    "random_10": Method("random frozen, 10 %", by_chance(10)),
    "random_50": Method("random frozen, 50 %", by_chance(50)),
    "fisher_30": Method("Fisher frozen, 30 %", by_fisher(30), needs_fisher=True),
    "conflict": Method("opposed signs frozen", conflict),
    "bottom": Method("bottom half frozen", lambda a: a.network.bottom_half().to(a.before.device)),
    "inside_2": Method("only inside own core, 2 %", outside(2), fewer_steps=PROBE_STEPS),
    "inside_10": Method("only inside own core, 10 %", outside(10), fewer_steps=PROBE_STEPS),
    "inside_30": Method("only inside own core, 30 %", outside(30), fewer_steps=PROBE_STEPS),
    # as many steps as inside the core, so that only the positions differ
    "at_random_2": Method("only at random, 2 %", outside_by_chance(2), fewer_steps=PROBE_STEPS),
    "at_random_10": Method("only at random, 10 %", outside_by_chance(10), fewer_steps=PROBE_STEPS),
    "at_random_30": Method("only at random, 30 %", outside_by_chance(30), fewer_steps=PROBE_STEPS),
    "kl": Method("KL to the model before, β = 1", penalty=close_to_before(1.0)),
    "kl_10": Method("KL to the model before, β = 10", penalty=close_to_before(10.0)),
    "ewc_8": Method("EWC, λ = 1e8", penalty=elastic(1e8), needs_fisher=True),
    "ewc_9": Method("EWC, λ = 1e9", penalty=elastic(1e9), needs_fisher=True),
    "ewc_10": Method("EWC, λ = 1e10", penalty=elastic(1e10), needs_fisher=True),
    "osf": Method("orthogonal to the largest half (OSF)", project=orthogonal(0.5)),
    "average": Method("averaged, ω = .75", weight=SFA),
    "average_50": Method("averaged, ω = .5", weight=0.5),
    # of E1 only: averaged, and isolation added to it
    "average_freeze": Method("averaged, cores frozen, 10 %", cores(10), weight=SFA),
    "average_transplant": Method("averaged, cores transplanted, 10 %", weight=SFA, transplant=10),
    "average_both": Method("averaged, both, 10 %", cores(10), weight=SFA, transplant=10),
    "average_both_1": Method("averaged, both, 1 %", cores(1), weight=SFA, transplant=1),
}


def measured_fisher(network: Network, flat: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Fisher information of a task at the end of its arrival, while its rows are there."""
    return fisher(network, flat, rows.take(torch.arange(min(FISHER_ROWS, len(rows)))))
