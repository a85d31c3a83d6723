"""What a criterion of core positions chooses from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpift.checkpoint.align import align
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import Checkpoint, fingerprint
from cpift.method.identify import core_count
from cpift.method.region import Region
from cpift.method.scores import counted
from cpift.method.top_scores import Read, top_columns, top_elements
from cpift.method.zero_updates import reasons

UNITS = {"element": top_elements, "column": top_columns}
Measure = Callable[[str, str, Path], Mapping[str, Any]]
"""Given a task, the name of a score and an empty folder: writes a checkpoint of scores there, returns statistics."""


@dataclass(frozen=True)
class Choice:
    """What core regions are chosen from.

    Attributes:
        base: the checkpoint before.
        tuned: fine-tuned checkpoint of each task that a region is wanted of.
        percent: share of the counted elements, 0 < percent <= 100.
        include: shell-style patterns; with any, only parameters that match one count.
        exclude: shell-style patterns of parameters that do not count.
        unit: one of :data:`UNITS`.
        seed: of what is drawn.
        others: fine-tuned checkpoints of further tasks.
        measure: scores parameters on a task's rows; None where there are no rows.
        progress: called with the number of bytes read since the last call.
    """

    base: Path
    tuned: Mapping[str, Path]
    percent: str
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    unit: str = "element"
    seed: int = 0
    others: Mapping[str, Path] = field(default_factory=dict)
    measure: Measure | None = None
    progress: Callable[[int], None] = lambda nbytes: None

    def open(self) -> tuple[Checkpoint, dict[str, Checkpoint]]:
        """The base, and the checkpoints of all tasks under its names. Raises :class:`CpiftError` where they differ."""
        origin = open_checkpoint(self.base)
        opened = {name: open_checkpoint(path, origin) for name, path in {**self.tuned, **self.others}.items()}
        check_compatible(origin, opened)
        return origin, {name: align(origin, model) for name, model in opened.items()}

    def shapes(self, origin: Checkpoint) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that count, in the order of their names."""
        kept = counted(origin.tensors, self.include, self.exclude)
        return {name: tensor.shape for name, tensor in origin.tensors.items() if name in kept}

    def best(
        self,
        origin: Checkpoint,
        model: Checkpoint,
        read: Read,
        statistics: Mapping[str, Any],
        *,
        signed: bool = False,
        updates: bool = False,
    ) -> Region:
        """The region of the largest scores.

        Args:
            origin: the base.
            model: the task's checkpoint, under the base's names.
            read: gives the scores.
            statistics: for the report, beside the share of zero scores.
            signed: a score has the sign of the update, which is kept.
            updates: a score is the whole update: reasons for zero ones are looked for.
        """
        shapes = self.shapes(origin)
        total = sum(origin.tensors[name].size for name in shapes)
        selected = UNITS[self.unit](shapes, read, core_count(self.percent, total))
        share = sum(selected.zeros.values()) / total if total else 0.0
        found: dict[str, Any] = {"zero_scores": share}
        if updates:
            found = {"zero_share": share, **reasons(origin, model, selected.zeros, total)}
        return Region(
            selected.positions,
            total,
            selected.negative if signed and self.unit == "element" else None,
            {name: shapes[name] for name in selected.positions},
            percent=self.percent,
            threshold=selected.threshold,
            base=fingerprint(origin),
            tuned=fingerprint(model),
            statistics={**found, **statistics},
        )
