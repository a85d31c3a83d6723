"""Command help made from the tables of what people extend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from typer.core import TyperCommand

if TYPE_CHECKING:
    from cpift.table import Entry


class HelpWriter(Protocol):
    """What is used of click's formatter; typer brings its own copy of click."""

    def section(self, name: str) -> AbstractContextManager[None]:
        """A heading, and what is written under it."""

    def write_dl(self, rows: Sequence[tuple[str, str]]) -> None:
        """A list of terms and their meanings."""


class FuseHelp(TyperCommand):
    """The help of ``cpift fuse``, with the entries of its two tables as they stand when it is shown."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, and under them the entries of the tables."""
        from cpift.method.interpolations import INTERPOLATIONS
        from cpift.method.overlap_rules import OVERLAP_RULES

        super().format_options(ctx, formatter)
        list_entries(formatter, "--overlap", OVERLAP_RULES)
        list_entries(formatter, "--interpolation", INTERPOLATIONS)


class EvaluateHelp(TyperCommand):
    """The help of ``cpift evaluate``, with the table of metrics."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, and under them the metrics that a recipe may name."""
        from cpift.metrics import METRICS

        super().format_options(ctx, formatter)
        list_entries(formatter, "--metric, or tasks.NAME.metric in a recipe", METRICS)


class DataHelp(TyperCommand):
    """The help of ``cpift data``, with the table of shapes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, and under them the shapes of rows that are recognised."""
        from cpift.data.shapes import SHAPES

        super().format_options(ctx, formatter)
        list_entries(formatter, "tasks.NAME.shape in the recipe", SHAPES)


def list_entries(formatter: HelpWriter, option: str, table: Mapping[str, Entry]) -> None:
    """Write each entry's name and summary under a heading that names the option."""
    with formatter.section(f"Values of {option}"):
        formatter.write_dl([(entry.name, entry.summary) for entry in table.values()])
