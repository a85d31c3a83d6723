"""One way to add a task, and how it did beside ``cpift add``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpift.metrics.change import Change

FILE = "compare/additions.json"  # within the run folder
FORMAT = "cpift.additions/1"
OURS = "add"


@dataclass(frozen=True)
class Addition:
    """One way, and how it did.

    Attributes:
        name: ``add``, or an alternative's.
        label: in tables.
        tokens: training tokens.
        changes: each task before and after, and the neutral text.
        against: each task after, minus after ``add``; empty for ``add`` itself.
    """

    name: str
    label: str
    tokens: int
    changes: list[Change]
    against: list[Change] = field(default_factory=list)

    @property
    def net_wins(self) -> int:
        """Tasks on which it is ahead of ``add`` beyond noise, minus those on which it is behind."""
        verdicts = [change.verdict for change in self.against]
        return verdicts.count("gained") - verdicts.count("lost")

    @property
    def mean_gain(self) -> float:
        """Mean over its tasks of what it is ahead of ``add``, in the metrics' own units."""
        return sum(change.gain for change in self.against) / len(self.against) if self.against else 0.0

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Addition:
        """One row of ``additions.json``."""
        changes, against = ([Change(**change) for change in row[key]] for key in ("changes", "against"))
        return cls(row["name"], row["label"], row["tokens"], changes, against)


def addition_table(rows: Sequence[Addition]) -> list[list[str]]:
    """The table for terminal and page: header, then one line a way."""
    tasks = [change.task for change in rows[0].changes]
    table = [["method", *tasks, "tokens"]]
    for row in rows:
        cells = []
        for place, change in enumerate(row.changes):
            value = f"{change.unit.number(change.after)} {change.unit.short}"
            verdict = row.against[place].verdict if row.against else ""
            cells.append(value + {"gained": " ▲", "lost": " ▼"}.get(verdict, ""))
        table.append([row.label, *cells, f"{row.tokens:,}"])
    return table
