#!/usr/bin/env python3
"""Writes the drawings of the pages on concepts to docs/images/concepts: plain SVG, narrow enough for a phone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "images" / "concepts"
WIDTH = 420

# As an image a drawing follows the system's scheme; on the site, where it is part of the page, docs/assets/site.css.
STYLE = """<style>
.drawing{--ink:#22262e;--soft:#8b919c;--fill:#d5d9e0;--a:#2f66c9;--b:#c2621a;--c:#1f8a5d;font:14px system-ui,sans-serif}
@media (prefers-color-scheme:dark){.drawing{--ink:#e4e7ec;--soft:#8b919c;--fill:#474c57;--a:#7aa5f2;--b:#f0a265;--c:#5cc79a}}
.drawing text{fill:var(--ink);stroke:none}.drawing .small{font-size:12px}.drawing .bold{font-weight:600}
</style>"""


def svg(height: int, title: str, body: Iterable[str]) -> str:
    """A whole drawing."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" viewBox="0 0 {WIDTH} {height}" role="img">'
    return "\n".join([head, f"<title>{title}</title>", STYLE, *body, "</svg>\n"])


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """One line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def cell(x: float, y: float, size: float, colour: str, opacity: float = 1.0, frame: str = "none") -> str:
    """One parameter."""
    inner = size - 3
    return (
        f'<rect x="{x + 1.5:g}" y="{y + 1.5:g}" width="{inner:g}" height="{inner:g}" rx="2" fill="var(--{colour})" '
        f'fill-opacity="{opacity:.2f}" stroke="{frame if frame == "none" else f"var(--{frame})"}" stroke-width="2.5"/>'
    )


def line(points: Iterable[tuple[float, float]], colour: str, more: str = "") -> str:
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-width="2" {more}/>'


def arrow(x: float, y: float, to_x: float, to_y: float, colour: str = "soft") -> str:
    """A straight arrow."""
    angle = math.atan2(to_y - y, to_x - x)
    wings = [(to_x - 8 * math.cos(angle + turn), to_y - 8 * math.sin(angle + turn)) for turn in (0.5, -0.5)]
    return line([(x, y), (to_x, to_y)], colour) + line([wings[0], (to_x, to_y), wings[1]], colour)


def seesaw() -> str:
    """One task up, another down."""
    body = [
        line([(60, 100), (360, 40)], "ink", 'stroke-linecap="round"'),
        '<path d="M210 70 L190 120 L230 120 Z" fill="var(--soft)"/>',
        '<circle cx="72" cy="74" r="20" fill="var(--b)"/><circle cx="348" cy="19" r="18" fill="var(--a)"/>',
        text(100, 62, "task A falls", "bold"),
        text(320, 24, "task B rises", "bold", "end"),
        text(210, 140, "fine-tuning on B alone", "small", "middle"),
    ]
    return svg(150, "A seesaw: fine-tuning on task B lets task A fall", body)


def steps() -> str:
    """The way from a base model to the refined one."""
    boxes = [
        ("Probe", "fine-tune the base on each task, shortly", "a"),
        ("Identify", "the parameters that each probe moved most", "a"),
        ("Group", "tasks whose core regions overlap", "b"),
        ("Fuse", "core values transplanted, the rest interpolated", "b"),
        ("Refine", "group by group, earlier cores frozen", "c"),
    ]
    body = [text(210, 20, "base model and several data sets", "small", "middle")]
    for row, (name, what, colour) in enumerate(boxes):
        y = 42 + 68 * row
        body += [
            arrow(210, y - 16, 210, y - 3),
            f'<rect x="20" y="{y}" width="380" height="46" rx="8" fill="none" stroke="var(--{colour})" stroke-width="2"/>',
            text(34, y + 28, name, "bold"),
            text(104, y + 28, what, "small"),
        ]
    body += [arrow(210, 362, 210, 377), text(210, 395, "one model, scored on every task", "small", "middle")]
    return svg(405, "The steps of a run, from the base model to the refined one", body)


def core() -> str:
    """A grid of parameters, the largest updates framed."""
    rng = random.Random(1)
    columns, rows, size = 16, 7, 24
    moved = [rng.lognormvariate(0, 0.9) for _ in range(columns * rows)]
    largest = sorted(moved, reverse=True)
    edge, top = largest[round(0.05 * len(moved)) - 1], largest[0]
    body = [text(18, 20, "How far fine-tuning moved each parameter, |Δ|", "bold")]
    for index, value in enumerate(moved):
        x, y = 18 + index % columns * size, 32 + index // columns * size
        body.append(cell(x, y, size, "a", 0.08 + 0.92 * value / top, "b" if value >= edge else "none"))
    body += [
        text(18, 222, "A cell is one parameter; the fuller, the further it moved."),
        cell(18, 232, 20, "a", 0.7, "b"),
        text(46, 247, f"core region: the largest 5 %, here {sum(v >= edge for v in moved)} of {len(moved)}"),
    ]
    return svg(262, "A grid of parameters, with the largest five per cent of the updates framed", body)


def overlap() -> str:
    """Two core regions on one grid, and their Jaccard overlap."""
    columns, size = 16, 24
    first = {5, 18, 23, 40, 41, 58, 63, 77}
    second = {9, 23, 31, 41, 50, 66, 77, 92}
    body = [text(18, 20, "Two core regions on the same parameters", "bold")]
    for index in range(columns * 6):
        x, y = 18 + index % columns * size, 32 + index // columns * size
        body.append(cell(x, y, size, "fill", 0.45))
        if index in first:
            body.append(cell(x, y, size, "a"))
        if index in second:
            body.append(f'<circle cx="{x + 12}" cy="{y + 12}" r="7" fill="var(--b)"/>')
    both, either = len(first & second), len(first | second)
    body += [
        cell(18, 184, 20, "a"), text(44, 199, "core of maths"),
        '<circle cx="178" cy="194" r="7" fill="var(--b)"/>', text(192, 199, "core of code"),
        text(18, 226, f"overlap = in both / in either = {both} / {either} = {both / either:.2f}"),
        text(18, 248, "From τ = 0.1 on, the two tasks are one group."),
    ]  # fmt: skip
    return svg(260, "Two core regions on one grid, and how their overlap is counted", body)


def fusion() -> str:
    """Two models and the backbone become one."""
    size, count = 24, 13
    cores = {"maths": {2, 5, 9}, "code": {4, 9, 11}}
    colours = {"maths": "a", "code": "b"}
    body = []
    for row, (name, positions) in enumerate(cores.items()):
        y = 12 + 40 * row
        body.append(text(12, y + 17, name, "bold"))
        body += [
            cell(96 + k * size, y, size, colours[name], 1.0 if k in positions else 0.25) for k in range(count)
        ]  # fmt: skip
    body += [text(12, 109, "backbone", "bold"), *[cell(96 + k * size, 92, size, "c", 0.25) for k in range(count)]]
    body += [arrow(96 + k * size + 12, 122, 96 + k * size + 12, 146) for k in (0, 5, 9, 12)]
    body.append(text(12, 171, "fused", "bold"))
    for k in range(count):
        owners = [name for name, positions in cores.items() if k in positions]
        colour = colours[owners[0]] if owners else "fill"
        body.append(cell(96 + k * size, 154, size, colour, frame="ink" if len(owners) == 2 else "none"))
    body += [
        text(12, 206, "Full colour: a core position. It gets its task's own value."),
        text(12, 228, "Framed: in both cores. The task that moved it most wins."),
        text(12, 250, "Grey: all others. The three models are interpolated."),
    ]
    return svg(262, "Core values are transplanted, all other positions are interpolated", body)


def freezing() -> str:
    """What is trained and what is frozen in each refine stage."""
    size, count = 24, 12
    cores = [("a", {1, 4, 8}), ("b", {2, 6, 10}), ("c", {0, 5, 9})]
    body = [text(12, 20, "Three groups, refined one after the other", "bold")]
    for stage in range(3):
        y = 34 + 40 * stage
        body.append(text(12, y + 17, f"stage {stage + 1}"))
        for k in range(count):
            owner = next((i for i, (_, positions) in enumerate(cores[:stage]) if k in positions), None)
            x = 84 + k * size
            body.append(cell(x, y, size, "fill" if owner is None else cores[owner][0], 0.5 if owner is None else 1.0))
            if owner is not None:  # a lock
                body.append(f'<rect x="{x + 8}" y="{y + 11}" width="8" height="7" fill="#fff"/>')
                body.append(
                    f'<path d="M{x + 9.5} {y + 11} v-2 a2.5 2.5 0 0 1 5 0 v2" fill="none" stroke="#fff" stroke-width="1.5"/>'
                )
    body += [
        text(12, 178, "Locked: the core of an earlier group keeps every bit."),
        text(12, 200, "Grey: trained in this stage."),
    ]
    return svg(212, "In each refine stage the cores of earlier groups are frozen", body)


def adamw(steps: int, zero_from: int) -> list[float]:
    """A parameter under AdamW (rate 0.01, decay 0.1), whose gradient is 1 and from a step on 0."""
    value, mean, square, values = 1.0, 0.0, 0.0, [1.0]
    for step in range(1, steps + 1):
        gradient = 1.0 if step <= zero_from else 0.0
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        value *= 1 - 0.01 * 0.1
        value -= 0.01 * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.999**step)) + 1e-8)
        values.append(value)
    return values


def zero_gradient() -> str:
    """What AdamW does to a parameter whose gradient is set to zero."""
    steps, zero_from = 40, 10
    values = adamw(steps, zero_from)
    frozen = values[: zero_from + 1] + [values[zero_from]] * (steps - zero_from)
    low, high = min(values), max(values)

    def place(step: int, value: float) -> tuple[float, float]:
        return 40 + 350 * step / steps, 44 + 136 * (high - value) / (high - low)

    x = place(zero_from, 0)[0]
    body = [
        text(12, 20, "One parameter under AdamW", "bold"),
        line([(40, 190), (390, 190)], "soft"),
        line([(x, 36), (x, 190)], "soft", 'stroke-dasharray="4 4"'),
        text(x + 6, 50, "from here on its gradient is 0", "small"),
        line([place(k, v) for k, v in enumerate(values)], "b"),
        line([place(k, v) for k, v in enumerate(frozen)], "a", 'stroke-dasharray="7 3"'),
        text(388, place(steps, frozen[-1])[1] - 8, "freeze: the same bits", "", "end"),
        text(388, place(steps, values[-1])[1] - 40, "zeroed: it moves on", "", "end"),
        text(215, 210, "steps", "small", "middle"),
    ]
    return svg(220, "A parameter whose gradient is zeroed is moved on by momentum and weight decay", body)


def half_precision() -> str:
    """Two updates between neighbouring values of bf16."""
    gap = 2.0**-11  # of bf16 between 1/16 and 1/8: eight significant bits
    start = round(0.1 / gap) * gap

    def place(value: float) -> float:
        return 60 + 300 * (value - start) / (2 * gap)

    body = [text(12, 20, "Values of bf16 near 0.1, and two updates", "bold")]
    for row, (update, colour) in enumerate(((1e-4, "b"), (3e-4, "a"))):
        y = 72 + 88 * row
        rounded = start + round(update / gap) * gap
        body += [line([(40, y), (380, y)], "soft")]
        for k in range(3):
            body.append(line([(place(start + k * gap), y - 8), (place(start + k * gap), y + 8)], "ink"))
            body.append(text(place(start + k * gap), y + 24, f"{start + k * gap:.5f}", "small", "middle"))
        body += [
            arrow(place(start), y - 14, place(start + update), y - 14, colour),
            text(place(start + update) + 8, y - 10, f"+ {update:g} in fp32", "small"),
            f'<circle cx="{place(rounded):.1f}" cy="{y}" r="6" fill="var(--{colour})"/>',
            text(60, y + 44, f"saved as bf16: moved by {rounded - start:.5f}" if rounded > start else "saved as bf16: not moved at all"),
        ]  # fmt: skip
    return svg(216, "An update smaller than half the distance of two values of bf16 is lost when it is saved", body)


DRAWINGS: Mapping[str, Callable[[], str]] = {
    "seesaw": seesaw,
    "steps": steps,
    "core": core,
    "overlap": overlap,
    "fusion": fusion,
    "freezing": freezing,
    "zero-gradient": zero_gradient,
    "half-precision": half_precision,
}

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
