"""The vectors that are interpolated, known by their inner products alone (paper section 3.3).

Every interpolation here gives a linear combination of checkpoints. The Gram matrix is that of θ⁰ and of the updates of
the backbone and of each task, because the weights themselves are too nearly parallel for their angle to be
taken from their products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

EPSILON = 1e-4  # radians: nearer to 0 or π than this, the interpolation is linear

Space = Literal["weights", "updates"]
Weight = Literal["equal"] | float | tuple[float, ...]
"""``fuse.weight``; a tuple is a weight for each task, for those interpolations that have ``weights`` among their parameters."""


class Vectors:
    """The backbone and each task as vectors: one tensor's free entries, or the whole model's.

    A combination of them is an array of N + 1 shares, float64: of the backbone, then of each task.

    Args:
        gram: float64 (N + 2, N + 2), inner products of θ⁰, Δ of the backbone, Δ₁ … Δ_N over the free entries.
        free: number of free entries.
        space: are the vectors the "weights" or the "updates"?
    """

    def __init__(self, gram: np.ndarray, free: int, space: Space) -> None:
        self.count = len(gram) - 1
        self.free = free
        self.space = space
        self._gram = gram
        # Column j: vector j in terms of θ⁰ and the updates.
        self._frame = np.vstack([np.full(self.count, float(space == "weights")), np.eye(self.count)])

    @property
    def each(self) -> np.ndarray:
        """Each vector by itself as a combination, float64 (N + 1, N + 1)."""
        return np.eye(self.count)

    def norm(self, x: np.ndarray) -> float:
        """Length of the combination ``x``."""
        inner = self._frame @ x  # summed in the frame, where nearly parallel weights do not cancel
        return float(np.sqrt(max(inner @ self._gram @ inner, 0.0)))

    def angle(self, x: np.ndarray, y: np.ndarray) -> float | None:
        """Angle of x and y in radians, None where one is zero; exact at small angles too (Kahan's form)."""
        a, b = self.norm(x), self.norm(y)
        if a == 0 or b == 0:
            return None
        return 2 * float(np.arctan2(self.norm(x / a - y / b), self.norm(x / a + y / b)))


@dataclass(frozen=True)
class Shares:
    """What an interpolation gives.

    Attributes:
        values: float64 (N + 1,), share of the backbone and of each task.
        angles: those met on the way, radians, for the report; may be empty.
    """

    values: np.ndarray
    angles: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Interpolation:
    """An entry of the table of interpolations.

    Attributes:
        name: as ``fuse.interpolation`` in the recipe and ``--interpolation`` have it.
        label: what the rest is, in the report: "the rest is {label} of the weights".
        summary: one short phrase for help, recipe and docs.
        reference: where it comes from.
        shares: gives the shares, from the vectors and ``fuse.weight``.
        parameters: settings of ``fuse`` that it reads, and what they mean to it; ``weight`` is refused where it is none.
        space: the space that it always works in; None: ``fuse.space``.
    """

    name: str
    label: str
    summary: str
    reference: str
    shares: Callable[[Vectors, Weight], Shares]
    parameters: Mapping[str, str] = field(default_factory=dict)
    space: Space | None = None
