"""The pieces that a page is put together from."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cpift.report.html import Html

Clause = tuple[str, str]  # of a headline: what is compared with ("" where nothing is), and what is said
NARROW = 6  # columns of a drawing that may stand beside another one


@dataclass(frozen=True)
class Figure:
    """A drawing with its numbers.

    Attributes:
        id: its name in the page.
        title: above it.
        describe: what a screen reader says in its place.
        drawing: what ``draw.js`` needs: kind, panels and more.
        headers: of the same numbers as a table and as CSV.
        rows: of that table.
        note: how to read it.
        before: markup above the drawing (controls).
    """

    id: str
    title: str
    describe: str
    drawing: Mapping[str, object]
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    before: str = ""

    @property
    def views(self) -> list[str]:
        """Names of the views that the drawing can show, one at a time."""
        views = self.drawing.get("views")
        return list(views) if isinstance(views, Mapping) else []

    @property
    def narrow(self) -> bool:
        """May it stand beside another figure?"""
        columns = self.drawing.get("xs")
        return isinstance(columns, Sequence) and 0 < len(columns) <= NARROW

    @property
    def csv(self) -> str:
        """All rows as a CSV file."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.headers)
        for row in self.rows:
            writer.writerow([_csv_cell(cell) for cell in row])
        return text.getvalue()


def _csv_cell(cell: object) -> object:
    """A spreadsheet must not take a task's name for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+@\t" else "" if cell is None else cell


@dataclass(frozen=True)
class Section:
    """A heading with text, tables and figures under it."""

    id: str
    title: str
    content: Sequence[Html | Figure]


@dataclass(frozen=True)
class Parts:
    """What the page holds.

    Attributes:
        title: of the window.
        kicker: the line above the headline.
        headline: the clauses of one sentence.
        lead: under the headline.
        top: of the first screen, below the warnings.
        warnings: text and remedy of each.
        sections: all that follows.
    """

    title: str
    kicker: Html
    headline: Sequence[Clause]
    lead: Sequence[Html] = ()
    top: Sequence[Html] = ()
    warnings: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)
