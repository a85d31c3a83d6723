"""Parts to one HTML file that loads nothing: script, style and data are inside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.resources import files

from cpift.report.html import Html, environment
from cpift.report.parts import Clause, Figure, Parts

ROWS_SHOWN = 300  # of a table; the CSV has all
_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "draw.js")


def page(parts: Parts) -> str:
    """The whole file."""
    figures = [part for section in parts.sections for part in section.content if isinstance(part, Figure)]
    return (
        environment()
        .get_template("page.html")
        .render(
            parts=parts,
            headline=[_unbroken(clause) for clause in parts.headline],
            drawings={figure.id: _finite({**figure.drawing, "title": figure.title}) for figure in figures},
            rows_shown=ROWS_SHOWN,
            style=_file("page.css"),
            scripts=[_file(name) for name in _SCRIPTS],
        )
    )


def _unbroken(clause: Clause) -> Clause:
    """A clause whose numbers stay on one line with their units."""
    where, what = (_with_fixed_spaces(text) for text in clause)
    return where, what


def _with_fixed_spaces(text: str) -> str:
    for joined in (" %", " points", " nats", " …"):
        text = text.replace(joined, "\N{NO-BREAK SPACE}" + joined[1:])
    fixed = "\N{NO-BREAK SPACE}"
    return text.replace("… ", f"…{fixed}").replace(f"95{fixed}% ", f"95{fixed}%{fixed}")


def _finite(value: object) -> object:
    """A loss that is no number leaves a gap in its line."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _file(name: str) -> Html:
    """A file of this package that goes into the page as it is."""
    return Html((files("cpift.report") / name).read_text(encoding="utf-8"))
