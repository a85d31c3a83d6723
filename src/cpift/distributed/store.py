"""The launcher's key-value store, through which the processes of a run speak to each other.

Waiting for hours then needs no collective operation that could time out.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import Protocol

from torch.distributed.rendezvous import rendezvous

_PATIENCE = timedelta(days=30)  # of a process that waits; where another one dies, the launcher ends it


class Store(Protocol):
    """The launcher's key-value store."""

    def set(self, key: str, value: bytes) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Wait for a key, and read its value."""

    def delete_key(self, key: str) -> bool:
        """Remove a value."""


@functools.cache
def open_store() -> Store:
    """The store of this run, opened once a process."""
    store, _, _ = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    store.set_timeout(_PATIENCE)
    opened: Store = store
    return opened


def key(*parts: object) -> str:
    """A key of this run: the store outlives a restart of the workers."""
    return "/".join(map(str, ("cpift", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), *parts)))
