"""Stage 2, group: tasks whose core regions overlap share a stage (paper section 3.2)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from cpift.errors import CpiftError
from cpift.method.region import Region


@dataclass(frozen=True)
class Grouping:
    """Overlaps, groups and the order of the stages.

    Attributes:
        tasks: names; the rows and columns of the two matrices.
        jaccard: |Cᵢ∩Cⱼ| / |Cᵢ∪Cⱼ|, 1 on the diagonal (0 for an empty region).
        sign_agreement: share of the common positions at which both updates have the same sign; None if unknown.
        groups: the tasks of each group.
        order: indices into ``groups``, the stages first to last.
        threshold: τ.
    """

    tasks: list[str]
    jaccard: list[list[float]]
    sign_agreement: list[list[float | None]]
    groups: list[list[str]]
    order: list[int]
    threshold: float

    @property
    def stages(self) -> list[list[str]]:
        """The groups, first stage first."""
        return [self.groups[i] for i in self.order]

    def to_dict(self) -> dict[str, object]:
        """The record as JSON takes it."""
        return asdict(self)


def group(
    regions: Mapping[str, Region],
    threshold: float = 0.1,
    order: Literal["random"] | Sequence[Sequence[str]] = "random",
    seed: int = 0,
) -> Grouping:
    """Compare all regions, and group the tasks: connected components of the graph with an edge where J >= threshold.

    Args:
        regions: core regions by task, of one base, in the recipe's order.
        threshold: τ; 0 puts all tasks in one group.
        order: "random" shuffles the groups; a list of lists gives groups and order instead.
        seed: of the random order.

    Raises:
        CpiftError: regions of different bases, a negative threshold, given groups that do not hold each task once.
    """
    tasks = list(regions)
    if not tasks:
        raise CpiftError("group: no regions given")
    if not 0 <= threshold <= 1:
        raise CpiftError(f"threshold: {threshold} is not in 0 … 1")
    jaccard = [[0.0] * len(tasks) for _ in tasks]
    signs: list[list[float | None]] = [[None] * len(tasks) for _ in tasks]
    for i, a in enumerate(regions.values()):
        jaccard[i][i] = 1.0 if a.count else 0.0
        signs[i][i] = 1.0 if a.count and a.negative is not None else None
        for j, b in enumerate(list(regions.values())[:i]):
            common, agree = a.overlap(b)
            union = a.count + b.count - common
            jaccard[i][j] = jaccard[j][i] = common / union if union else 0.0
            if agree is not None and common:
                signs[i][j] = signs[j][i] = agree / common
    if order == "random":
        groups = components(tasks, jaccard, threshold)
        stages = list(range(len(groups)))
        random.Random(seed).shuffle(stages)
    else:
        groups = [list(members) for members in order]
        if sorted(t for members in groups for t in members) != sorted(tasks) or not all(groups):
            raise CpiftError(f"group.order: must hold each task once ({', '.join(tasks)})")
        stages = list(range(len(groups)))
    return Grouping(tasks, jaccard, signs, groups, stages, threshold)


def components(tasks: Sequence[str], jaccard: Sequence[Sequence[float]], threshold: float) -> list[list[str]]:
    """Connected components of the graph with an edge where J >= threshold, ordered by their first task.

    Args:
        tasks: names.
        jaccard: overlaps, the rows and columns in the order of ``tasks``.
        threshold: τ.

    Returns:
        The tasks of each component, in the order of ``tasks``.
    """
    left, result = list(range(len(tasks))), []
    while left:
        members, frontier = set(), [left[0]]
        while frontier:
            i = frontier.pop()
            members.add(i)
            frontier += [j for j in left if j not in members and jaccard[i][j] >= threshold]
        result.append([tasks[i] for i in sorted(members)])
        left = [i for i in left if i not in members]
    return result
