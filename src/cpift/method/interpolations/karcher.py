"""The Karcher mean: the point on the sphere nearest to all directions, at the mean length. It has no order."""

from __future__ import annotations

import numpy as np

from cpift.method.interpolations.vectors import EPSILON, Interpolation, Shares, Vectors, Weight

_STEPS, _NEAR, _SMALL_ANGLE = 1000, 1e-12, 1e-9


def _karcher(vectors: Vectors, weight: Weight) -> Shares:
    """Karcher mean of the directions, scaled by the mean norm; vectors of norm zero take no part."""
    lengths = np.array([vectors.norm(v) for v in vectors.each])
    present = vectors.each[lengths > 0]
    if not len(present):
        return Shares(vectors.each.mean(axis=0))
    plain, scale = present.mean(axis=0), float(lengths[lengths > 0].mean())
    directions = present / lengths[lengths > 0][:, None]
    mean = directions.mean(axis=0)
    if vectors.free < 2 or vectors.norm(mean) < EPSILON:
        return Shares(plain)
    mean /= vectors.norm(mean)
    angles: list[float] = []
    for _ in range(_STEPS):
        angles = [vectors.angle(mean, d) or 0.0 for d in directions]
        if max(angles) > np.pi - EPSILON:
            return Shares(plain, angles)
        tangent = sum(
            (a / np.sin(a) if a > _SMALL_ANGLE else 1.0) * (d - np.cos(a) * mean)
            for a, d in zip(angles, directions, strict=True)
        ) / len(directions)
        length = vectors.norm(tangent)
        if length < _NEAR:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * tangent
        mean /= vectors.norm(mean)
    return Shares(scale * mean, angles)


KARCHER = Interpolation(
    name="karcher",
    label="a mean on the sphere",
    summary="on the sphere, all at once: the mean of the directions at the mean length",
    reference="H. Karcher, 1977, doi:10.1002/cpa.3160300502",
    shares=_karcher,
)
