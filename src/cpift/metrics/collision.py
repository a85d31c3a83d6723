"""Which new skill is predicted to harm an old one most: by the loss of each new fine-tune on the old skill's rows.

The predictor is that of experiment M2 (docs/results/m2.md). It gives an order, not a size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cpift.metrics import intervals
from cpift.metrics.score import ScoreEntry

EVIDENCE = (
    "A prediction of order, not of points lost: trained next on the old model, the one with the highest loss is expected to "
    "harm it most.",
    "Measured on ten skills of three small models, without kept rows (docs/results/m2.md): rank correlation with the rise of "
    "the old skill's loss 0.67 (95 %: 0.54 … 0.79), with the points lost 0.46 (0.28 … 0.64). "
    "Overlap of the cores at 10 %: −0.25 (−0.43 … −0.08).",
)
"""What stands behind the prediction, for people; the numbers are those of M2's table."""


@dataclass(frozen=True)
class Loss:
    """Of one model on the rows of an old skill.

    Attributes:
        model: its name.
        loss: mean over all tokens of the assistant's part, nats.
        low: lower end of its 95 % interval over rows; None of a single row.
        high: upper end.
    """

    model: str
    loss: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, model: str, entry: ScoreEntry) -> Loss:
        """A model's loss, and the interval of its rows."""
        low, high = intervals.of_score(entry) or (None, None)
        return cls(model, entry["score"], low, high)

    @property
    def text(self) -> str:
        """``1.234 (1.012 to 1.456)``."""
        interval = "" if self.low is None or self.high is None else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.loss:.3f}{interval}"


@dataclass(frozen=True)
class Prediction:
    """Which fine-tunes are predicted to harm one old skill, and by what.

    Attributes:
        old: name of the model, or the task, whose skill it is.
        rows: rows that were scored.
        tokens: of their assistant's parts.
        base: the loss of the base there.
        own: the loss of the old skill's own fine-tune.
        others: of the other fine-tunes, the highest loss first.
        order: their names in groups, most harm first; a group's losses are level with its first within noise (95 %, paired
            by row). Empty of a single other: one has no order.
    """

    old: str
    rows: int
    tokens: int
    base: Loss
    own: Loss
    others: list[Loss]
    order: list[list[str]]

    @property
    def learnt(self) -> bool:
        """Is its own fine-tune better on the rows than the base? Otherwise they are hardly rows of its skill."""
        return self.own.loss < self.base.loss

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def predicted(old: str, base: ScoreEntry, own: ScoreEntry, others: Mapping[str, ScoreEntry]) -> Prediction:
    """The prediction from losses on the same rows.

    Args:
        old: name of the old skill's model or task.
        base: of the base.
        own: of the old skill's own fine-tune.
        others: of the other fine-tunes, by name.
    """
    ranked = sorted(others, key=lambda name: -others[name]["score"])
    return Prediction(
        old=old,
        rows=len(own["items"]),
        tokens=sum(own["tokens"]),
        base=Loss.of("base", base),
        own=Loss.of(old, own),
        others=[Loss.of(name, others[name]) for name in ranked],
        order=_groups(ranked, others) if len(ranked) > 1 else [],
    )


def sentence(found: Prediction) -> str:
    """The prediction in one sentence: ``predicted to harm a most: c, then b``."""
    if not found.order:
        return f"one other fine-tune on the rows of {found.old}: with two or more there is an order to predict"
    if len(found.order) == 1:
        return f"on the rows of {found.old} the others are level within noise: no order is predicted"
    said = [" or ".join(group) + (" (level within noise)" if len(group) > 1 else "") for group in found.order]
    return f"predicted to harm {found.old} most: {', then '.join(said)}"


def not_learnt(found: Sequence[Prediction]) -> list[str]:
    """Warnings of old skills whose own fine-tune is no better than the base on the rows."""
    return [
        f"{p.old}: its loss on its own rows, {p.own.loss:.3f}, is not below the base's, {p.base.loss:.3f}; "
        "are these rows of the skill that it has learnt?"
        for p in found
        if not p.learnt
    ]


def _groups(ranked: Sequence[str], entries: Mapping[str, ScoreEntry]) -> list[list[str]]:
    groups: list[list[str]] = []
    for name in ranked:
        gap = intervals.of_difference(entries[groups[-1][0]], entries[name]) if groups else None
        if groups and (gap is None or gap[1] <= 0):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups
