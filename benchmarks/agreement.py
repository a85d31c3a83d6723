"""How far two regions agree: Jaccard of all positions and of each kind of module, beside chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cpift.method.region import Region


@dataclass(frozen=True)
class Agreement:
    """Of two regions within some tensors. ``chance``: expected of random regions of these sizes within them."""

    jaccard: float
    chance: float
    first: int
    second: int


def agreement(first: Region, second: Region, sizes: Mapping[str, int]) -> dict[str, Agreement]:
    """By kind of module, and of "all"; without the kinds in which a region has no position.

    Args:
        first: a region.
        second: another one, on the same base.
        sizes: elements of each tensor in which positions could lie, by name.
    """
    counts = [region.counts() for region in (first, second, first & second)]
    kinds = {"all": list(sizes)}
    for tensor in sizes:
        kinds.setdefault(tensor.removesuffix(".weight").rpartition(".")[2], []).append(tensor)
    agreements: dict[str, Agreement] = {}
    for kind, tensors in kinds.items():
        ours, theirs, both = (sum(count.get(tensor, 0) for tensor in tensors) for count in counts)
        if ours and theirs:
            expected = ours * theirs / sum(sizes[tensor] for tensor in tensors)
            agreements[kind] = Agreement(
                both / (ours + theirs - both), expected / (ours + theirs - expected), ours, theirs
            )
    return agreements
