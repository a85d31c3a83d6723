"""Stage 3, fuse: the coefficients of a spherical interpolation, from a small Gram matrix (paper section 3.3).

Every interpolation here gives a linear combination of checkpoints. The Gram matrix is that of θ⁰ and of the updates of
the backbone and of each task, because the weights themselves are too nearly parallel for their angle to be
taken from their products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cpift.errors import CpiftError

EPSILON = 1e-4  # radians: nearer to 0 or π than this, the interpolation is linear

Interpolation = Literal["slerp", "karcher", "linear", "sum"]
Space = Literal["weights", "updates"]


@dataclass(frozen=True)
class Combination:
    """What to sum up: ``coefficients`` of θ⁰, the backbone and each task (N + 2,); ``angles`` met on the way (radians)."""

    coefficients: np.ndarray
    angles: list[float]


def combination(
    gram: np.ndarray, free: int, interpolation: Interpolation, space: Space, weight: Literal["equal"] | float
) -> Combination:
    """Coefficients for one vector (a tensor's free entries, or the whole model's).

    Args:
        gram: float64 (N + 2, N + 2), inner products of θ⁰, Δ of the backbone, Δ₁ … Δ_N over the free entries.
        free: number of free entries.
        interpolation: "slerp", one task after the other; "karcher", all at once; "linear"; or "sum", the updates of all
            tasks added to the backbone (task arithmetic), whatever the space.
        space: what is interpolated, the "weights" or the "updates".
        weight: "equal" shares (ω_i = 1/(i+1)), or a fixed ω in 0 … 1; for "sum" the factor of each update, 1 if "equal".
    """
    models = len(gram) - 1
    if interpolation == "sum":
        factors = np.array([1.0] + [1.0 if weight == "equal" else float(weight)] * (models - 1))
        return Combination(np.concatenate([[1.0 - float(factors.sum())], factors]), [])
    # Column j: vector j (the backbone, then each task) in terms of θ⁰ and the updates.
    frame = np.vstack([np.full(models, float(space == "weights")), np.eye(models)])
    sphere = _Sphere(gram, frame)
    backbone = np.eye(models)[0]
    absent = space == "updates" and weight == "equal" and sphere.norm(backbone) == 0
    if interpolation == "karcher":
        if weight != "equal":
            raise CpiftError("fuse.weight: karcher takes all models alike; leave it at equal, or use slerp")
        mean, angles = _karcher(sphere, np.eye(models), free)
    else:
        mean, angles = _sequence(sphere, np.eye(models), free, weight, absent, interpolation == "linear")
    rest = 1.0 - float(mean.sum()) if space == "updates" else 0.0
    return Combination(np.concatenate([[rest], mean]), angles)


class _Sphere:
    """Norms and angles of combinations of the vectors."""

    def __init__(self, gram: np.ndarray, frame: np.ndarray) -> None:
        self._gram, self._frame = gram, frame

    def norm(self, x: np.ndarray) -> float:
        inner = self._frame @ x  # summed in the frame, where nearly parallel weights do not cancel
        return float(np.sqrt(max(inner @ self._gram @ inner, 0.0)))

    def angle(self, x: np.ndarray, y: np.ndarray) -> float | None:
        """Angle of x and y in radians, None where one is zero; exact at small angles too (Kahan's form)."""
        a, b = self.norm(x), self.norm(y)
        if a == 0 or b == 0:
            return None
        return 2 * float(np.arctan2(self.norm(x / a - y / b), self.norm(x / a + y / b)))


def slerp_factors(angle: float | None, weight: float, free: int) -> tuple[float, float]:
    """Factors of a and b in SLERP(a, b, ω); those of the linear interpolation where the angle gives none."""
    if angle is None or free < 2 or angle < EPSILON or angle > np.pi - EPSILON:
        return 1 - weight, weight
    return float(np.sin((1 - weight) * angle) / np.sin(angle)), float(np.sin(weight * angle) / np.sin(angle))


def _sequence(
    sphere: _Sphere, vectors: np.ndarray, free: int, weight: Literal["equal"] | float, absent: bool, linear: bool
) -> tuple[np.ndarray, list[float]]:
    value, tasks = (vectors[1], vectors[2:]) if absent else (vectors[0], vectors[1:])
    angles = []
    for i, task in enumerate(tasks, start=1):
        share = 1 / (i + 1) if weight == "equal" else float(weight)
        angle = sphere.angle(value, task)
        angles.append(angle or 0.0)
        keep, add = slerp_factors(None if linear else angle, share, free)
        value = keep * value + add * task
    return value, angles


def _karcher(sphere: _Sphere, vectors: np.ndarray, free: int) -> tuple[np.ndarray, list[float]]:
    """Karcher mean of the directions, scaled by the mean norm; vectors of norm zero take no part."""
    lengths = np.array([sphere.norm(v) for v in vectors])
    present = vectors[lengths > 0]
    if not len(present):
        return vectors.mean(axis=0), []
    plain, scale = present.mean(axis=0), float(lengths[lengths > 0].mean())
    directions = present / lengths[lengths > 0][:, None]
    mean = directions.mean(axis=0)
    if free < 2 or sphere.norm(mean) < EPSILON:
        return plain, []
    mean /= sphere.norm(mean)
    angles: list[float] = []
    for _ in range(1000):
        angles = [sphere.angle(mean, d) or 0.0 for d in directions]
        if max(angles) > np.pi - EPSILON:
            return plain, angles
        tangent = sum(
            (a / np.sin(a) if a > 1e-9 else 1.0) * (d - np.cos(a) * mean)
            for a, d in zip(angles, directions, strict=True)
        ) / len(directions)
        length = sphere.norm(tangent)
        if length < 1e-12:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * tangent
        mean /= sphere.norm(mean)
    return scale * mean, angles
