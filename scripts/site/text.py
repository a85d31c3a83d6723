"""Text of the code as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

PROSE = 30  # characters of a cell, in the mean: more are sentences, fewer are numbers to be compared


def plain(text: str) -> str:
    """One line of a docstring or help text: marks of reStructuredText become Markdown's, signs of HTML are text."""
    line = " ".join(text.split())
    line = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", line).replace("``", "`")
    parts = re.split(r"(`[^`]*`)", line)
    # Every second part is inline code, which Markdown leaves as it is.
    return "".join(part if k % 2 else _escaped(part) for k, part in enumerate(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, which a narrow screen shows as a list."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line] for line in lines]
    body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return f"{_keys(head, ' markdown')}\n\n{body}\n\n</div>"


def as_lists(html: str) -> str:
    """Tables of keys in a page that was written by hand, which a narrow screen then shows as lists, too.

    Args:
        html: the page's. A table of keys has three or four columns, the first code in each row, the last sentences.
    """

    def wrapped(table: re.Match[str]) -> str:
        head = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<th[ >].*?</th>", table[0], re.S)]
        first = re.findall(r"<tr>\s*<td[^>]*>(.{6})", table[0], re.S)
        last = re.findall(r"<td[^>]*>((?:(?!<td).)*)</td>\s*</tr>", table[0], re.S)
        prose = sum(len(re.sub("<.*?>", "", cell)) for cell in last) > PROSE * len(last)
        keys = len(head) in (3, 4) and prose and all(cell == "<code>" for cell in first)
        return f"{_keys(head)}{table[0]}</div>" if keys else table[0]

    return re.sub(r"<table>.*?</table>", wrapped, html, flags=re.S)


def _keys(head: Sequence[str], markdown: str = "") -> str:
    """What opens a table of keys; docs/assets/site.css shows the names of its columns on a narrow screen."""
    names = f"--second:'{head[1]}: ';--third:'{head[2] if len(head) > 2 else ''}: '"
    return f'<div class="keys" style="{names}"{markdown}>'


def _escaped(text: str) -> str:
    return re.sub(r"(?<!\\)([*_\[])", r"\\\1", text).replace("<", "&lt;")
