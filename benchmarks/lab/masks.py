"""Which elements are protected: masks over the flat vector, by update, by chance, by Fisher information or by sign."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cpift.method.identify import core_count


def top(scores: torch.Tensor, percent: float) -> torch.Tensor:
    """The p % of the largest scores, exactly ⌊p·D/100⌋ of them, ties by the lower position; bool (D,).

    The same elements as :func:`cpift.identify` selects for a checkpoint whose tensors lie in the order of the vector.
    """
    return largest(scores, core_count(percent, scores.numel()))


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """As many of the largest scores, ties by the lower position; bool (D,)."""
    if count == 0:
        return torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    least = scores.kthvalue(scores.numel() - count + 1).values
    enough = scores >= least
    if int(enough.sum()) == count:  # no ties at the edge
        return enough
    above, equal = scores > least, scores == least
    ties = count - int(above.sum())
    return above | (equal & (equal.cumsum(0) <= ties))


def chance(like: torch.Tensor, percent: float, seed: int) -> torch.Tensor:
    """As many elements at random, bool (D,)."""
    rng = torch.Generator().manual_seed(seed)
    return top(torch.rand(like.numel(), generator=rng), percent).to(like.device)


def alike(core: torch.Tensor, sizes: Sequence[int], seed: int) -> torch.Tensor:
    """At random, in each tensor as many elements as a core has there, bool (D,).

    Args:
        core: bool (D,).
        sizes: number of elements of each tensor.
        seed: of what is drawn.
    """
    rng, parts = torch.Generator().manual_seed(seed), []
    for part in core.split(list(sizes)):
        parts.append(largest(torch.rand(part.numel(), generator=rng), int(part.sum())))
    return torch.cat(parts)


def union(masks: list[torch.Tensor]) -> torch.Tensor:
    """Elements of any mask."""
    return torch.stack(masks).any(0)


def opposed(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Where two gradients pull a parameter opposite ways (CPL, arXiv:2601.21577), bool (D,)."""
    return old * new < 0


def average(before: torch.Tensor, after: torch.Tensor, weight: float) -> torch.Tensor:
    """The model before and the model after, averaged; ``weight`` is that of the model after (SFA, arXiv:2501.05559)."""
    return weight * after + (1 - weight) * before


def transplanted(
    averaged: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    old: list[torch.Tensor],
    percent: float,
) -> torch.Tensor:
    """An average with the cores put back: the new task's from the model after, the earlier tasks' from the model before.

    Where an element is in both, the task with the larger update has it (the package's default).

    Args:
        averaged: of the two models.
        before: the model that the new task arrived at.
        after: the model trained on the new task.
        old: updates of the earlier tasks.
        percent: p of every core.
    """
    update = (after - before).abs()
    new_core, old_core = top(update, percent), union([top(u.abs(), percent) for u in old])
    size = torch.stack([u.abs() for u in old]).amax(0)
    result = averaged.clone()
    from_old = old_core & ~(new_core & (update > size))
    result[new_core] = after[new_core]
    result[from_old] = before[from_old]
    return result
