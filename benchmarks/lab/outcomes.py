"""Raw outcomes: one JSON line for each finished cell; which rows were right is packed, eight rows a byte."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np

Value = str | int | float | list[str] | list[float] | dict[str, str] | dict[str, float]


class Stage(TypedDict):
    """One arrival.

    Keys:
        task: what arrived.
        right: earlier tasks and this one, packed outcomes after the arrival.
        tokens: characters trained on, a probe's among them.
        text_loss: loss on the pre-training text afterwards.
        drift: KL from the pre-trained model on that text afterwards.
    """

    task: str
    right: dict[str, str]
    tokens: int
    text_loss: float
    drift: float


def packed(right: np.ndarray) -> str:
    """Booleans as base64 text, with their number before a colon."""
    return f"{len(right)}:{base64.b64encode(np.packbits(right).tobytes()).decode()}"


class Log:
    """The outcomes of one file; what is in it is not computed again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.done = {str(line["cell"]): line for line in lines(file)} if file.exists() else {}
        if file.exists() and not file.read_bytes().endswith(b"\n"):  # cut off by an interruption
            whole = file.read_bytes().rpartition(b"\n")
            file.write_bytes(whole[0] + whole[1])

    def __contains__(self, cell: str) -> bool:
        return cell in self.done

    def add(self, cell: str, outcome: dict[str, Value | list[Stage]]) -> None:
        """Append a finished cell."""
        line: dict[str, object] = {"cell": cell, **outcome}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        self.done[cell] = line


def lines(file: Path) -> Iterator[dict[str, object]]:
    """The cells of a file, packed by gzip or not; a line cut off by an interruption is left out."""
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    for line in text.split("\n"):
        if line.endswith("}"):
            yield json.loads(line)
