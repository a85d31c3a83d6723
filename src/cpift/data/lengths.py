"""Lengths of rows in tokens, and how many training.max_length cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cpift.data.encoding import Encoded, encode
from cpift.data.row_checks import Row
from cpift.files.findings import Finding, finding

WARN_FROM = 0.01  # share of rows cut


@dataclass(frozen=True)
class Bin:
    """A bar of a histogram: rows of at least and at most so many tokens."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Lengths:
    """What is known of the lengths of some rows."""

    rows: int
    tokens: int
    """Tokens of all rows that are used, after the cut."""
    trained: int
    """Tokens among them that the loss is taken on."""
    longest: int
    """Tokens of the longest row, before the cut."""
    cut: int
    """Rows that are longer than training.max_length."""
    left_out: int
    """Rows that have no trained token, after the cut: these are not used."""
    histogram: tuple[Bin, ...]

    @property
    def cut_share(self) -> float:
        """Share of the rows that is cut."""
        return self.cut / self.rows if self.rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "cut_share": self.cut_share}


def encode_measured(rows: Sequence[Row], tokenizer: Any, max_length: int | None) -> tuple[list[Encoded], Lengths]:
    """The rows as :func:`cpift.data.encoding.encode_all` gives them, and their lengths.

    Args:
        rows: rows of a task.
        tokenizer: the model's.
        max_length: tokens of a row that are used; None: all.

    Raises:
        CpiftError: a row that the chat template refuses.
    """
    whole = [encode(row, tokenizer) for row in rows]
    lengths = [len(row.input_ids) for row in whole]
    used = [replace(row, input_ids=row.input_ids[:max_length], labels=row.labels[:max_length]) for row in whole]
    kept = [row for row in used if row.trained]
    return kept, Lengths(
        rows=len(rows),
        tokens=sum(len(row.input_ids) for row in kept),
        trained=sum(row.trained for row in kept),
        longest=max(lengths, default=0),
        cut=0 if max_length is None else sum(length > max_length for length in lengths),
        left_out=len(used) - len(kept),
        histogram=histogram(lengths),
    )


def histogram(lengths: Sequence[int]) -> tuple[Bin, ...]:
    """Bars whose lengths double: 1 to 16, 17 to 32, and on to the longest row; from the first that has a row."""
    bars, first, last = [], 1, 16
    while lengths and first <= max(lengths):
        bars.append(Bin(first, last, sum(first <= length <= last for length in lengths)))
        first, last = last + 1, 2 * last
    while bars and not bars[0].rows:
        bars.pop(0)
    return tuple(bars)


def cut_warning(task: str, lengths: Lengths, max_length: int | None, evaluation: bool = False) -> Finding | None:
    """The warning of rows that are cut; None below 1 % of them.

    Args:
        task: its name.
        lengths: of its rows.
        max_length: tokens of a row that are used.
        evaluation: the rows are scored by loss, and not trained on.
    """
    if max_length is None or lengths.cut_share < WARN_FROM:
        return None
    kind, verb = ("evaluation", "scored") if evaluation else ("training", "learnt")
    gone = f"; {lengths.left_out} rows have nothing left to be {verb} and are left out" if lengths.left_out else ""
    text = (
        f"task {task}: {lengths.cut} of {lengths.rows} {kind} rows ({lengths.cut_share:.1%}) are longer than "
        f"training.max_length {max_length} and are cut, so that their end is not {verb}; the longest has "
        f"{lengths.longest} tokens{gone}"
    )
    return finding("evaluation-rows-cut" if evaluation else "rows-cut", text)
