"""Two scores of the same rows, item beside item, where either may have rows left out."""

from __future__ import annotations

from dataclasses import dataclass

from cpift.metrics.score import ScoreEntry


@dataclass(frozen=True)
class Paired:
    """The items that two scores have in common.

    Attributes:
        first: of one score.
        second: of the other.
        tokens: of the first; empty where they are not known.
        whole: whether neither score has an item that the other lacks.
    """

    first: list[float]
    second: list[float]
    tokens: list[int]
    whole: bool


def paired(a: ScoreEntry, b: ScoreEntry) -> Paired | None:
    """The items of two scores, by row; None where the rows cannot be matched.

    Args:
        a: a score.
        b: another of the same rows.
    """
    x, y, tokens = a.get("items") or [], b.get("items") or [], a.get("tokens") or []
    if "rows" not in a and "rows" not in b:
        return Paired(x, y, tokens, True) if len(x) == len(y) else None
    left, right = a.get("rows", list(range(len(x)))), b.get("rows", list(range(len(y))))
    place = {row: i for i, row in enumerate(right)}
    common = [(i, place[row]) for i, row in enumerate(left) if row in place]
    kept = [tokens[i] for i, _ in common] if len(tokens) == len(x) else []
    return Paired([x[i] for i, _ in common], [y[j] for _, j in common], kept, left == right)
