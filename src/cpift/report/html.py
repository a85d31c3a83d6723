"""Values to markup, by the templates beside this file; everything that is not markup already is escaped."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

Html = Markup
"""Text that is markup already. Adding text to it escapes the text."""


@functools.cache
def environment() -> Environment:
    """The templates, with autoescape; a name that a template misspells is an error."""
    made = Environment(
        loader=PackageLoader("cpift.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters["cell_text"] = cell_text
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "default": str}
    return made


def element(name: str, *values: object) -> Html:
    """One macro of ``templates/elements.html``.

    Args:
        name: the macro.
        values: its arguments, in order.
    """
    macros = environment().get_template("elements.html").module
    return Html(getattr(macros, name)(*values))


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph.

    Args:
        text: what it says.
        kind: its CSS class.
    """
    return element("paragraph", text, kind)


def bullets(items: Sequence[str]) -> Html:
    """A list."""
    return element("bullets", items)


def heading(text: str) -> Html:
    """A heading within a section."""
    return element("heading", text)


def folded(title: str, inside: Html) -> Html:
    """What opens on a click on its title."""
    return element("folded", title, inside)


def table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, kind: str = "", text: Sequence[int] = ()
) -> Html:
    """A table.

    Args:
        headers: one a column.
        rows: their cells; numbers and None are written for people, :class:`Html` stays as it is.
        kind: the CSS class; with ``cards`` rows become cards on a narrow screen.
        text: columns beside the first that hold text rather than numbers.
    """
    return element("table", headers, rows, kind, text)


def cell_text(value: object) -> str:
    """A cell of a table as people read it."""
    if value is None:
        return "–"
    if isinstance(value, str):  # markup stays markup
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}"
