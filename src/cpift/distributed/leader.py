"""Rank 0 leads: it alone does everything except training, and it alone writes.

The other ranks wait until it sends the name of a stage to train, take part in that training, and wait again. The names go
through the launcher's key-value store: waiting for hours then needs no collective operation that could time out. All nodes
see the run folder under one path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Protocol

from torch.distributed.rendezvous import rendezvous

from cpift.distributed import ranks

_PATIENCE = timedelta(days=30)  # of a process that waits; where the leader dies, the launcher ends it
_OVER = b"over"


class Store(Protocol):
    """The launcher's key-value store."""

    def set(self, key: str, value: bytes) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Wait for a key, and read its value."""


class Leader:
    """Sends the other processes the stages to train; used in a ``with``, at whose end the others stop waiting."""

    def __init__(self) -> None:
        self._store = _open_store() if ranks.size() > 1 else None
        self._number = 0

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, *_: object) -> None:
        self._send(_OVER)

    def train(self, stage: str) -> None:
        """Have the others join in the training of this stage."""
        self._send(stage.encode())

    def _send(self, message: bytes) -> None:
        if self._store is not None:
            self._store.set(_key(self._number), message)
            self._number += 1


def orders() -> Iterator[str]:
    """The stages to train, as the leader sends them; ends with the run."""
    store, number = _open_store(), 0
    while (message := bytes(store.get(_key(number)))) != _OVER:
        yield message.decode()
        number += 1


def _key(number: int) -> str:
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives a restart of the workers
    return f"cpift/{again}/{number}"


def _open_store() -> Store:
    store, _, _ = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    store.set_timeout(_PATIENCE)
    opened: Store = store
    return opened
