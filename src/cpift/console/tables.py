"""Tables of numbers: columns that fit are written as they are, and rich folds what is wider than the terminal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from cpift.console.terminal import FILE_WIDTH, clean, is_live, is_terminal


def numbers_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column holds names, and the others numbers.

    Args:
        headers: of the columns.
        rows: as many cells each.
    """
    cells = [[clean(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = shutil.get_terminal_size().columns if is_terminal() else FILE_WIDTH
    if sum(widths) + 2 * (len(widths) - 1) > room or not all(map(_is_narrow, (cell for row in cells for cell in row))):
        from cpift.console.drawn import draw  # noqa: PLC0415 - rich takes longer to import than many a command runs

        draw(cells)
        return
    lines = []
    for name, *numbers in cells:
        padded = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    if is_live() and os.environ.get("TERM") not in ("dumb", "unknown"):
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    print("", *lines, sep="\n", flush=True)


def _is_narrow(text: str) -> bool:
    """Does each of its characters take one column? Known of Latin, Greek, Cyrillic and common punctuation."""
    return all(c < "\u0300" or "\u0370" <= c < "\u0483" or "\u2010" <= c < "\u2028" or c in "▲▼" for c in text)
