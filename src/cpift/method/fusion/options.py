"""How checkpoints are fused: the choices that decide about the result, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from cpift.checkpoint.vocabulary import Vocabulary
from cpift.errors import CpiftError
from cpift.method.interpolations import INTERPOLATIONS, Space, Weight, check_weight
from cpift.method.overlap_rules import OVERLAP_RULES, OverlapRule

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
WeightOfTasks = Literal["equal"] | float | Mapping[str, float]
BASE = "base"  # the type that the base has, tensor by tensor


@dataclass(frozen=True)
class FusionOptions:
    """The arguments of :func:`cpift.method.fuse.fuse` that decide about the result; described there.

    Raises:
        CpiftError: one that is not allowed, when the record is made.
    """

    overlap: str
    interpolation: str
    space: Space
    vector: Literal["tensor", "model"]
    weight: Weight
    vocabulary: Vocabulary
    dtype: str | None
    max_shard_size: int

    def __post_init__(self) -> None:
        if self.vocabulary not in get_args(Vocabulary):
            raise CpiftError(f"vocabulary: {self.vocabulary} is not one of {', '.join(get_args(Vocabulary))}")
        OVERLAP_RULES.choose(self.overlap, "overlap")
        INTERPOLATIONS.choose(self.interpolation, "interpolation")
        for key, value, known in (
            ("space", self.space, get_args(Space)),
            ("vector", self.vector, ("tensor", "model")),
            ("dtype", self.dtype or BASE, (*DTYPES, BASE)),
        ):
            if value not in known:
                raise CpiftError(f"{key}: {value} is not one of {', '.join(known)}")
        if isinstance(self.weight, tuple):
            if not all(map(math.isfinite, self.weight)):
                raise CpiftError(f"weight: {', '.join(map(str, self.weight))} are not all numbers")
        elif self.weight != "equal" and not 0 <= self.weight <= 1:
            raise CpiftError(f"weight: {self.weight} is not in 0 … 1")
        try:
            check_weight(self.interpolation, self.weight)
        except ValueError as error:
            raise CpiftError(f"weight: {error}") from None

    @property
    def rule(self) -> OverlapRule:
        """Decides about a position in several regions."""
        return OVERLAP_RULES[self.overlap]

    @property
    def reads(self) -> int:
        """How often the checkpoints are read: once, or twice where one vector is the whole model."""
        return 2 if self.vector == "model" else 1

    def to_dict(self) -> Mapping[str, object]:
        """For ``fusion.json`` and the key of a half-written output."""
        return asdict(self)


def in_order(weight: WeightOfTasks, tasks: Sequence[str]) -> Weight:
    """A weight as interpolations take it: those of tasks in the order of the tasks.

    Args:
        weight: "equal", a number, or a number by task.
        tasks: names, in order.

    Raises:
        CpiftError: a task that has none, or one that is not there.
    """
    if not isinstance(weight, Mapping):
        return weight
    if weight.keys() != set(tasks):
        odd = ", ".join(sorted(weight.keys() ^ set(tasks)))
        raise CpiftError(f"weight: must hold each task once, and differs in {odd}")
    return tuple(float(weight[task]) for task in tasks)
