"""Lengths of rows in tokens, and how many training.max_length cuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cpift.data.encoded import EncodedRows, encode_rows
from cpift.data.row_checks import Row
from cpift.files.findings import Finding, finding
from cpift.typing import Tokenizer

WARN_FROM = 0.01  # share of rows cut


@dataclass(frozen=True)
class Bin:
    """A bar of a histogram: rows of ``first`` to ``last`` tokens."""

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


def encode_measured(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int | None) -> tuple[EncodedRows, Lengths]:
    """The rows that have a token to learn, encoded once for all that use them, and the lengths of all.

    Args:
        rows: rows of a task.
        tokenizer: the model's.
        max_length: tokens of a row that are used; None: all.

    Raises:
        CpiftError: a row that the chat template refuses.
    """
    encoded = encode_rows(rows, tokenizer, max_length)
    lengths, trained = encoded.column("whole"), encoded.column("trained")
    used = np.minimum(lengths, max_length) if max_length is not None else lengths
    kept = np.flatnonzero(trained)
    return encoded if len(kept) == len(rows) else encoded.take(kept.tolist()), Lengths(
        rows=len(rows),
        tokens=int(used[kept].sum()),
        trained=int(trained.sum()),
        longest=int(lengths.max(initial=0)),
        cut=0 if max_length is None else int((lengths > max_length).sum()),
        left_out=len(rows) - len(kept),
        histogram=histogram(lengths.tolist()),
    )


def histogram(lengths: Sequence[int]) -> tuple[Bin, ...]:
    """Bars whose lengths double: 1 to 16, 17 to 32, and on to the longest row; from the first that has a row."""
    rows, edges = Counter(max(4, (max(length, 1) - 1).bit_length()) for length in lengths), range(0)
    if rows:
        edges = range(min(rows), max(rows) + 1)
    return tuple(Bin(1 if edge == 4 else 2 ** (edge - 1) + 1, 2**edge, rows[edge]) for edge in edges)


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
