"""The method in plain numpy, written from its description alone: what cpift is held against."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

Weights = dict[str, np.ndarray]
Positions = dict[str, np.ndarray]


def load(folder: Path) -> Weights:
    """All parameters of a checkpoint as float32 (float64 if stored so), a tied output embedding left out."""
    weights: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            weights[name] = tensor.numpy() if tensor.dtype == torch.float64 else tensor.float().numpy()
    for embedding in ("model.embed_tokens.weight", "transformer.wte.weight"):
        if embedding in weights and np.array_equal(weights.get("lm_head.weight"), weights[embedding]):
            del weights["lm_head.weight"]
    return weights


def core(base: Weights, tuned: Weights, percent: str) -> Positions:
    """The k = floor(p·D/100) positions of largest |Δ|; ties by name in plain string order, then row-major."""
    names = sorted(base)
    size = np.concatenate([np.abs(tuned[n].astype(np.float32) - base[n].astype(np.float32)).ravel() for n in names])
    k = int(Decimal(percent) * len(size) / 100)
    chosen = np.sort(np.argsort(-size, kind="stable")[:k])
    found, start = {}, 0
    for name in names:
        inside = chosen[(chosen >= start) & (chosen < start + base[name].size)] - start
        if len(inside):
            found[name] = inside
        start += base[name].size
    return found


def as_set(region: Positions) -> set[tuple[str, int]]:
    return {(name, int(i)) for name, positions in region.items() for i in positions}


def jaccard(a: Positions, b: Positions) -> float:
    left, right = as_set(a), as_set(b)
    return len(left & right) / len(left | right) if left | right else 0.0


def slerp(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """SLERP(a, b, ω) in float64, linear where the angle is near 0 or π, a norm is zero, or one entry is left."""
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if len(a) < 2 or 0 in lengths:
        return (1 - weight) * a + weight * b
    unit = a / lengths[0], b / lengths[1]
    angle = 2 * np.arctan2(np.linalg.norm(unit[0] - unit[1]), np.linalg.norm(unit[0] + unit[1]))
    if angle < 1e-4 or angle > np.pi - 1e-4:
        return (1 - weight) * a + weight * b
    return (np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)


def karcher(vectors: list[np.ndarray]) -> np.ndarray:
    """Mean of the directions on the sphere, by tangent steps, times the mean norm; zero vectors take no part."""
    present = [v for v in vectors if np.linalg.norm(v) > 0]
    if not present:
        return np.mean(vectors, axis=0)
    if len(present[0]) < 2:
        return np.mean(present, axis=0)
    lengths = [np.linalg.norm(v) for v in present]
    units = [v / n for v, n in zip(present, lengths, strict=True)]
    mean = np.mean(units, axis=0)
    mean /= np.linalg.norm(mean)
    for _ in range(500):
        step = np.zeros_like(mean)
        for u in units:
            angle = np.arccos(np.clip(u @ mean, -1, 1))
            step += (angle / np.sin(angle) if angle > 1e-8 else 1) * (u - (u @ mean) * mean) / len(units)
        length = np.linalg.norm(step)
        if length < 1e-13:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
    return mean / np.linalg.norm(mean) * np.mean(lengths)


def interpolate(
    base: np.ndarray, backbone: np.ndarray, tasks: list[np.ndarray], how: str, space: str, weight: str | float
) -> np.ndarray:
    """One vector's free entries."""
    shift = base if space == "updates" else np.zeros_like(base)
    value, others = backbone - shift, [t - shift for t in tasks]
    if how == "karcher":
        return karcher([value, *others]) + shift
    absent = space == "updates" and weight == "equal" and not value.any()
    if absent:
        value, others = others[0], others[1:]
    for i, other in enumerate(others, start=2 if absent else 1):
        share = 1 / (i if absent else i + 1) if weight == "equal" else float(weight)
        value = slerp(value, other, share) if how == "slerp" else (1 - share) * value + share * other
    return value + shift


def fuse(
    base: Weights, backbone: Weights, tasks: list[Weights], regions: list[Positions], *, overlap: str = "largest",
    interpolation: str = "slerp", space: str = "weights", vector: str = "tensor", weight: str | float = "equal",
) -> Weights:  # fmt: skip
    """The fused model in float64."""
    names = sorted(base)
    free = {}
    for name in names:
        free[name] = np.ones(base[name].size, bool)
        for region in regions:
            free[name][region.get(name, np.empty(0, int))] = False

    def flat(weights: Weights, name: str) -> np.ndarray:
        return weights[name].astype(np.float64).ravel()

    groups = [[n] for n in names] if vector == "tensor" else [names]
    result = {name: flat(base, name) for name in names}
    for group in groups:
        parts = [np.concatenate([flat(w, n)[free[n]] for n in group]) for w in (base, backbone, *tasks)]
        value, start = interpolate(parts[0], parts[1], parts[2:], interpolation, space, weight), 0
        for name in group:
            count = int(free[name].sum())
            result[name][free[name]] = value[start : start + count]
            start += count
    for name in names:
        claims: dict[int, list[int]] = {}
        for task, region in enumerate(regions):
            for i in region.get(name, []):
                claims.setdefault(int(i), []).append(task)
        for i, claimed in claims.items():
            values = [flat(tasks[t], name)[i] for t in claimed]
            sizes = [abs(np.float32(v) - np.float32(flat(base, name)[i])) for v in values]
            result[name][i] = {"mean": np.mean(values), "order": values[-1], "largest": values[int(np.argmax(sizes))]}[
                overlap
            ]
    return {name: result[name].reshape(base[name].shape) for name in names}
