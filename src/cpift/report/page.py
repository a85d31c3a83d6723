"""Parts to one HTML file that loads nothing: script, style and data are inside."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from cpift.report.parts import Clause, Figure, Parts, Section, e, table

ROWS_SHOWN = 300  # of a table; the CSV has all


def page(parts: Parts) -> str:
    """The whole file."""
    figures = {part.id: part for section in parts.sections for part in section.content if isinstance(part, Figure)}
    data = {name: {**figure.drawing, "title": figure.title} for name, figure in figures.items()}
    links = "".join(f'<li><a href="#{e(s.id)}">{e(s.title)}</a></li>' for s in parts.sections)
    scripts = "".join(
        f"<script>{_file(name)}</script>" for name in ("vendor/d3.min.js", "vendor/plot.umd.min.js", "draw.js")
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>{e(parts.title)}</title>
<style>{_file("page.css")}</style>
</head>
<body>
<header>
<p class="kicker">{parts.kicker}</p>
<h1>{" ".join(_clause(c, i == len(parts.headline)) for i, c in enumerate(parts.headline, start=1))}</h1>
{"".join(parts.lead)}
{_warnings(parts.warnings)}
{"".join(parts.top)}
<nav aria-label="Parts of the report"><ul>{links}</ul></nav>
</header>
<main>
<noscript><p class="notice">The figures are drawn by a script, which is off here. Their numbers are in the tables.</p></noscript>
{"".join(map(_section, parts.sections))}
</main>
<script type="application/json" id="figures">{_json(data)}</script>
{scripts}
</body>
</html>
"""


def _clause(clause: Clause, last: bool) -> str:
    """On a line of its own; a number stays with its unit."""
    where, what = map(e, clause)
    before, after = (f'<span class="where">{where}:</span> ' if where else ""), "" if last else ";"
    shown = f"<span>{before}{what}{after}</span>"
    for joined in (" %", " points", " nats", " …"):
        shown = shown.replace(joined, "&nbsp;" + joined[1:])
    return shown.replace("… ", "…&nbsp;").replace("95&nbsp;% ", "95&nbsp;%&nbsp;")


def _warnings(found: Sequence[tuple[str, str]]) -> str:
    """Each with what to do; more than two fold into one line, so that the scores stay on the first screen."""
    told = [
        f'<p><strong>Warning:</strong> {e(text)}. <span class="soft">What to do: {e(remedy)}</span></p>'
        for text, remedy in found
    ]
    inside = "".join(told)
    if len(told) > 2:
        inside = f"<details><summary>{len(told)} warnings, each with what to do</summary>{inside}</details>"
    return f'<div class="notice">{inside}</div>' if told else ""


def _section(section: Section) -> str:
    inside = "".join(_figure(part) if isinstance(part, Figure) else part for part in section.content)
    return f'<section aria-labelledby="{e(section.id)}"><h2 id="{e(section.id)}">{e(section.title)}</h2>{inside}</section>\n'


def _figure(figure: Figure) -> str:
    # rows may be long (losses); the page stays small
    shown = table(figure.headers, figure.rows[:ROWS_SHOWN])
    more = (
        f"<p>{len(figure.rows) - ROWS_SHOWN:,} more rows are in the CSV file.</p>"
        if len(figure.rows) > ROWS_SHOWN
        else ""
    )
    link = (
        f'<a download="{e(figure.id)}.csv" href="data:text/csv;charset=utf-8,{quote(_csv(figure))}">Download as CSV</a>'
    )
    note = f"<p>{e(figure.note)}</p>" if figure.note else ""
    narrow = ' class="narrow"' if 0 < len(figure.drawing.get("xs") or ()) <= 6 else ""  # may stand beside another
    return (
        f'<figure id="figure-{e(figure.id)}"{narrow} aria-labelledby="title-{e(figure.id)}"><h3 id="title-{e(figure.id)}">{e(figure.title)}</h3>'
        f'<figcaption><p class="unseen" id="about-{e(figure.id)}">{e(figure.describe)}</p>{note}</figcaption>{figure.before}{_views(figure)}'
        f'<div class="drawing" id="draw-{e(figure.id)}"></div>'
        f"<details><summary>Numbers of “{e(figure.title)}”</summary>{shown}{more}<p>{link}</p></details></figure>"
    )


def _views(figure: Figure) -> str:
    views = list(figure.drawing.get("views", {}))
    if len(views) < 2:
        return ""
    choices = "".join(
        f'<label><input type="radio" name="view-{e(figure.id)}" value="{e(v)}"{" checked" if i == 0 else ""}> {e(v)}</label>'
        for i, v in enumerate(views)
    )
    return f'<fieldset class="controls"><legend>Show</legend>{choices}</fieldset>'


def _csv(figure: Figure) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(figure.headers)
    for row in figure.rows:
        # A spreadsheet must not take a task's name for a formula.
        writer.writerow([f"'{c}" if isinstance(c, str) and c[:1] in "=+@\t" else "" if c is None else c for c in row])
    return text.getvalue()


def _json(data: Any) -> str:
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False, default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """A loss that is no number leaves a gap in its line."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _file(name: str) -> str:
    return (files("cpift.report") / name).read_text(encoding="utf-8")
