"""95 % intervals for scores and their differences, from one outcome a row; no dependencies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cpift.metrics import described
from cpift.metrics.pairing import paired
from cpift.metrics.score import ScoreEntry

Z = 1.959964  # 97.5 % quantile of the normal distribution
# Student's t, 97.5 %, by degrees of freedom 1 … 30.
_T_TABLE = """
12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 2.201 2.179 2.160 2.145 2.131
2.120 2.110 2.101 2.093 2.086 2.080 2.074 2.069 2.064 2.060 2.056 2.052 2.048 2.045 2.042
"""
_T = [float(number) for number in _T_TABLE.split()]


def of_score(entry: ScoreEntry) -> tuple[float, float] | None:
    """Interval of a score: Wilson's where rows are right or wrong, otherwise the normal one of the mean.

    The mean is weighted by tokens where the score is. None where fewer than two rows are known.
    """
    items = entry.get("items") or []
    if len(items) < 2:
        return None
    if _binary(items):
        return wilson(sum(items), len(items))
    half = Z * _standard_error(items, _weights(entry, entry.get("tokens") or [], len(items)))
    low, high = entry["score"] - half, entry["score"] + half
    highest = described(entry["metric"]).unit.highest
    return max(0.0, low), high if highest is None else min(highest, high)


def of_difference(a: ScoreEntry, b: ScoreEntry) -> tuple[float, float, float] | None:
    """Difference a − b with its interval, paired by row: difference, low, high; None where the rows cannot be paired.

    A row that either score leaves out counts in neither. Right or wrong: the interval of Agresti and Min, which holds for few rows too.
    """
    pairs = paired(a, b)
    if pairs is None or len(pairs.first) < 2:
        return None
    x, y, n = pairs.first, pairs.second, len(pairs.first)
    weights = _weights(a, pairs.tokens, n)
    gap = a["score"] - b["score"]
    if not pairs.whole:  # over the rows that both have
        gap = sum((p - q) * w for p, q, w in zip(x, y, weights, strict=True)) / sum(weights)
    if _binary(x) and _binary(y):
        up = sum(p > q for p, q in zip(x, y, strict=True)) + 0.5
        down = sum(p < q for p, q in zip(x, y, strict=True)) + 0.5
        middle = (up - down) / (n + 2)
        half = Z * math.sqrt(max(0.0, (up + down) - (up - down) ** 2 / (n + 2))) / (n + 2)
        return gap, max(-1.0, min(gap, middle - half)), min(1.0, max(gap, middle + half))
    half = Z * _standard_error([p - q for p, q in zip(x, y, strict=True)], weights)
    return gap, gap - half, gap + half


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share."""
    p, z2 = right / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def of_mean(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean with Student's interval, over seeds: mean, low, high; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    half = t95(n - 1) * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean, mean - half, mean + half


def t95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t."""
    return _T[freedom - 1] if freedom <= len(_T) else Z + 2.5 / freedom


def _binary(items: Sequence[float]) -> bool:
    return all(value in (0.0, 1.0) for value in items)


def _weights(entry: ScoreEntry, tokens: Sequence[int], count: int) -> Sequence[float]:
    if described(entry["metric"]).by_tokens and len(tokens) == count and any(tokens):
        return [float(each) for each in tokens]
    return [1.0] * count


def _standard_error(values: Sequence[float], weights: Sequence[float]) -> float:
    total = sum(weights)
    mean = sum(v * w for v, w in zip(values, weights, strict=True)) / total
    n = len(values)
    squares = sum((w * (v - mean)) ** 2 for v, w in zip(values, weights, strict=True))
    return math.sqrt(squares * n / (n - 1)) / total
