"""Independent pieces of work shared out over the processes of a run, and their results brought together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cpift.distributed import ranks
from cpift.distributed.store import key, open_store

T = TypeVar("T")
_numbers = itertools.count()  # of the gatherings of this process


@dataclass(frozen=True)
class Share:
    """This process's share of work that all processes of a run list alike.

    Attributes:
        index: of this process, from 0.
        count: processes.
    """

    index: int = 0
    count: int = 1

    def own(self, pieces: Sequence[T]) -> list[T]:
        """Every ``count``-th piece, beginning with this process's."""
        return list(pieces[self.index :: self.count])

    def gather(self, value: T) -> list[T]:
        """The value of each process, in their order; all of them call this, and wait for the slowest.

        Args:
            value: what JSON can hold; tuples come back as lists.
        """
        if self.count == 1:
            return [value]
        store, number = open_store(), next(_numbers)
        store.set(key("gather", number, self.index), json.dumps(value).encode())
        values = [json.loads(store.get(key("gather", number, index))) for index in range(self.count)]
        if number:  # all have sent this one, so all have read the one before
            store.delete_key(key("gather", number - 1, self.index))
        return values

    def fill(self, done: Sequence[int], *columns: list[Any]) -> None:
        """Fill lists in with what the other processes have computed.

        Args:
            done: the places that this process has filled.
            columns: lists of one length, the same in all processes.

        Raises:
            RuntimeError: a place that no process has filled; this is a fault of cpift.
        """
        if self.count == 1:
            return
        parts = self.gather([(place, [column[place] for column in columns]) for place in done])
        filled = set[int]()
        for place, values in (one for part in parts for one in part):
            filled.add(place)
            for column, value in zip(columns, values, strict=True):
                column[place] = value
        if columns and len(filled) < len(columns[0]):
            raise RuntimeError(f"{len(columns[0]) - len(filled)} rows were scored by no process")


ALONE = Share()


def of_run() -> Share:
    """Of a run that a launcher has started in several processes; otherwise all of the work."""
    return Share(ranks.rank(), ranks.size())
