"""Rank 0 leads: it alone writes, and alone does everything except training and scoring.

The other ranks wait until it sends the names of stages to make together, take part in these, and wait again. The names
go through the launcher's key-value store. All nodes see the run folder under one path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from cpift.distributed import ranks
from cpift.distributed.store import key, open_store

_OVER = b"over"


class Leader:
    """Sends the other processes the stages to make; used in a ``with``, at whose end the others stop waiting."""

    def __init__(self) -> None:
        self._store = open_store() if ranks.size() > 1 else None
        self._number = 0

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, *_: object) -> None:
        self._send(_OVER)

    def share(self, stages: Sequence[str]) -> None:
        """Have the others join in making these stages, all by one call."""
        self._send(json.dumps(list(stages)).encode())

    def _send(self, message: bytes) -> None:
        if self._store is not None:
            self._store.set(key(self._number), message)
            self._number += 1


def orders() -> Iterator[list[str]]:
    """The stages to make together, as the leader sends them; ends with the run."""
    store, number = open_store(), 0
    while (message := bytes(store.get(key(number)))) != _OVER:
        yield json.loads(message)
        number += 1
