"""Tables that rich draws: it folds what is wider than the terminal, and knows how wide every script is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpift.console.terminal import FILE_WIDTH, is_live, is_terminal


def for_tables() -> Console:
    """Where they are drawn. A file has no width: they are not folded there."""
    return Console(highlight=False, width=None if is_terminal() else FILE_WIDTH)


def draw(cells: Sequence[Sequence[str]]) -> None:
    """A table of a header and rows, whose first column holds names, and the others numbers.

    Args:
        cells: all rows, the header first.
    """
    table = Table(box=None, pad_edge=False, header_style="bold" if is_live() else "none")
    for i, header in enumerate(cells[0]):
        table.add_column(header, justify="right" if i else "left", overflow="fold")
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    wide = for_tables()
    wide.print()
    wide.print(table)
