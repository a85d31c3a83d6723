"""Two kinds of drawing as SVG text: curves in a plane, and differences with their intervals, one a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1b6ca8", "#c1440e", "#3b7d3a", "#7b4ea3", "#a0780a", "#555555", "#b03a6f", "#2f8f8f")
STYLE = "font: 12px system-ui, sans-serif; background: #fff"


@dataclass(frozen=True)
class Difference:
    """One line of a forest plot: what it is, the mean, the interval's ends."""

    label: str
    mean: float
    low: float
    high: float


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str = "#bbb", width: float = 1) -> str:
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}" stroke-width="{width:g}"/>'
    )


def _drawing(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" style="{STYLE}" role="img">'
    ground = f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>"]) + "\n"


def curves(
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    names: Sequence[str] = (),
) -> str:
    """Curves through points, both axes from 0 to 100.

    Args:
        title: what it shows.
        x_label: what lies along x.
        y_label: what lies along y.
        lines: points of each curve, by its name.
        names: beside the points of each curve, in their order; empty: none.

    Returns:
        SVG text.
    """
    left, top, size, width = 50.0, 30.0, 300.0, 640.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + size * x / 100, top + size * (1 - y / 100)

    parts = [_text(left, 18, title)]
    for tick in range(0, 101, 20):
        (x, y), (x0, y0) = at(tick, tick), at(0, 0)
        parts += [_line(x, y0, x, top, "#eee"), _line(x0, y, left + size, y, "#eee")]
        parts += [_text(x, y0 + 16, str(tick), "middle"), _text(left - 6, y + 4, str(tick), "end")]
    parts += [_text(left + size / 2, top + size + 34, x_label, "middle")]
    parts += [f'<g transform="rotate(-90 14 {top + size / 2:.1f})">{_text(14, top + size / 2, y_label, "middle")}</g>']
    for i, (name, points) in enumerate(lines.items()):
        colour, places = COLOURS[i % len(COLOURS)], [at(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        if names and i == 0:
            parts += [_text(x + 5, y - 5, text, colour=colour) for (x, y), text in zip(places, names, strict=True)]
        y = top + 14 + 18 * i
        parts += [_line(left + size + 20, y - 4, left + size + 40, y - 4, colour, 2), _text(left + size + 46, y, name)]
    return _drawing(width, top + size + 44, title, parts)


def forest(title: str, unit: str, rows: Sequence[Difference]) -> str:
    """Differences with their intervals, and a line at zero.

    Args:
        title: what it shows.
        unit: of the differences.
        rows: from top to bottom.

    Returns:
        SVG text.
    """
    left, right, top, step = 330.0, 620.0, 36.0, 20.0
    low, high = min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows))
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return left + (right - left) * (value - low) / span

    bottom = top + step * len(rows)
    parts = [_text(10, 18, title), _line(at(0), top - 8, at(0), bottom, "#888")]
    for i, row in enumerate(rows):
        y, colour = top + step * i + 4, COLOURS[0] if row.low > 0 else COLOURS[1] if row.high < 0 else "#777"
        parts += [_text(left - 14, y + 4, row.label, "end"), _line(at(row.low), y, at(row.high), y, colour, 2)]
        parts.append(f'<circle cx="{at(row.mean):.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
    parts += [_text(at(0), bottom + 14, "0", "middle"), _text(right, bottom + 14, f"{high:+.0f} {unit}", "end")]
    parts.append(_text(left, bottom + 14, f"{low:+.0f}", "start") if at(0) - left > 30 else "")
    return _drawing(640, bottom + 24, title, [part for part in parts if part])
