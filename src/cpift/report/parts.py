"""The pieces that a page is put together from."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Clause = tuple[str, str]  # of a headline: what is compared with ("" where nothing is), and what is said


class Html(str):
    """Text that is markup already; everything else is escaped."""


@dataclass(frozen=True)
class Figure:
    """A drawing with its numbers.

    describe: what a screen reader says in its place. drawing: what ``draw.js`` needs: kind, panels and more.
    headers, rows: the same numbers as a table and as CSV. before: markup above the drawing (controls).
    """

    id: str
    title: str
    describe: str
    drawing: dict[str, Any]
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    before: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with text, tables and figures under it."""

    id: str
    title: str
    content: Sequence[Html | Figure]


@dataclass(frozen=True)
class Parts:
    """What the page holds. headline: the clauses of one sentence. lead: under it. warnings: text and remedy."""

    title: str
    kicker: Html
    headline: Sequence[Clause]
    lead: Sequence[Html] = ()
    top: Sequence[Html] = ()
    warnings: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)


def e(text: Any) -> str:
    """Escaped for HTML, attributes too."""
    return html.escape(str(text), quote=True)


def paragraph(text: str, kind: str = "") -> Html:
    return Html(f'<p class="{e(kind)}">{e(text)}</p>' if kind else f"<p>{e(text)}</p>")


def bullets(items: Sequence[str]) -> Html:
    return Html("<ul>" + "".join(f"<li>{e(item)}</li>" for item in items) + "</ul>")


def heading(text: str) -> Html:
    return Html(f"<h3>{e(text)}</h3>")


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, kind: str = "", text: Sequence[int] = ()) -> Html:
    """A table; the first column and those in ``text`` hold words. A cell that is :class:`Html` stays as it is."""
    styles = [' class="text"' if i in text else "" for i in range(len(headers))]
    head = "".join(f'<th scope="col"{style}>{e(h)}</th>' for h, style in zip(headers, styles, strict=True))
    lines = []
    for row in rows:
        cells = []
        for cell, name, style in zip(row, headers, styles, strict=True):
            shown = cell if isinstance(cell, Html) else e(cell_text(cell))
            # Cards, on a narrow screen, set the label beside the cell's one child.
            cells.append(
                f'<td data-label="{e(name)}"><span>{shown}</span></td>' if kind else f"<td{style}>{shown}</td>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f'<table class="{e(kind)}"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    # A region that scrolls must be reachable by keyboard.
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="table: {e(", ".join(headers[:3]))}">{body}</div>'
    )


def folded(title: str, inside: Html) -> Html:
    return Html(f"<details><summary>{e(title)}</summary>{inside}</details>")


def cell_text(value: Any) -> str:
    """A number of a table as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}"
