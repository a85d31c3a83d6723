"""What an overlap rule decides on, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Claims:
    """The positions of a block that are in several core regions, and what each would put there. N tasks, n positions in no order.

    Attributes:
        claimed: bool (N, n), is the position in the task's region? At least two tasks claim each.
        values: float64 (N, n), θᵢ there; 0 where it is not claimed.
        sizes: float32 (N, n), |Δᵢ| there; -1 where it is not claimed.
    """

    claimed: np.ndarray
    values: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Decision:
    """What stands at each position.

    Attributes:
        values: float64 (n,).
        winners: bool (N, n), the tasks whose value it is; the report counts them.
    """

    values: np.ndarray
    winners: np.ndarray


@dataclass(frozen=True)
class OverlapRule:
    """An entry of the table of overlap rules.

    Attributes:
        name: as ``fuse.overlap`` in the recipe and ``--overlap`` have it.
        label: what happens, in the report: "Where two cores collide, {label}."
        summary: one short phrase for help, recipe and docs.
        reference: where it comes from.
        decide: gives the value of each position that several tasks claim.
    """

    name: str
    label: str
    summary: str
    reference: str
    decide: Callable[[Claims], Decision]


def one_winner(claims: Claims, owner: np.ndarray) -> Decision:
    """The decision where the task ``owner``, int64 (n,), has each position to itself."""
    winners = owner[None, :] == np.arange(len(claims.values))[:, None]
    return Decision(claims.values[owner, np.arange(len(owner))], winners)
