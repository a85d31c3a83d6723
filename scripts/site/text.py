"""Text of the code as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence


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
    names = f"--second:'{head[1]}: ';--third:'{head[2] if len(head) > 2 else ''}: '"  # shown by docs/assets/site.css
    body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return f'<div class="keys" style="{names}" markdown>\n\n{body}\n\n</div>'


def _escaped(text: str) -> str:
    return re.sub(r"(?<!\\)([*_\[])", r"\\\1", text).replace("<", "&lt;")
