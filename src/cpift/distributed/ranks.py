"""Several processes at one run, started by torchrun or ``accelerate launch``.

The first one leads: it does all that is no training, alone, and writes. The others wait until it tells them the name of a
stage to train, make that stage's training with it, and wait again. Their words go through the launcher's own key-value
store, so that waiting for hours needs no collective that could time out. All nodes see the run folder under one path.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from cpift.errors import CpiftError

_PATIENCE = timedelta(days=30)  # of a process that waits; where the leader dies, the launcher ends it
_OVER = b"over"


def size() -> int:
    """Processes at this run; 1 where no launcher started it."""
    started = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if started else 1


def leads() -> bool:
    """Is this the one process that writes?"""
    return size() == 1 or os.environ["RANK"] == "0"


def check() -> None:
    """Raise :class:`CpiftError` for a way of sharding under which a region could not be kept frozen."""
    if _on("ACCELERATE_USE_DEEPSPEED"):
        raise CpiftError(
            "cpift run was not tried under DeepSpeed; use FSDP2: accelerate launch --use_fsdp --fsdp_version 2, "
            "or freeze() in a training loop of your own"
        )
    if _on("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise CpiftError(
            "FSDP1's flat parameters have no positions of their own; use FSDP2: accelerate launch --fsdp_version 2"
        )


def _on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def share(rows_each: int, accumulation: int, where: str = "training", processes: int | None = None) -> tuple[int, int]:
    """Rows in a forward pass and passes in a step, for each process, so that a step has the recipe's rows.

    A recipe says what one process would do; shared out, it is the same training on one GPU and on eight.
    ``processes``: by default those of this run. Raises :class:`CpiftError` where the rows cannot be shared.
    """
    processes = size() if processes is None else processes
    common = math.gcd(accumulation, processes)
    parts = processes // common
    if rows_each % parts:
        raise CpiftError(
            f"{where}: {rows_each * accumulation} rows a step cannot be shared by {processes} processes; set "
            f"per_device_train_batch_size × gradient_accumulation_steps to a multiple of {processes}"
        )
    return rows_each // parts, accumulation // common


class Leader:
    """Tells the others what to train; within ``with``, and at its end that it is over."""

    def __init__(self) -> None:
        self._store = _store() if size() > 1 else None
        self._number = 0

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, *_: Any) -> None:
        self._tell(_OVER)

    def train(self, stage: str) -> None:
        """Have the others join in the training of this stage."""
        self._tell(stage.encode())

    def _tell(self, word: bytes) -> None:
        if self._store is not None:
            self._store.set(_key(self._number), word)
            self._number += 1


def orders() -> Iterator[str]:
    """The stages to train, as the leader tells them; ends when the run is over."""
    store, number = _store(), 0
    while (word := bytes(store.get(_key(number)))) != _OVER:
        yield word.decode()
        number += 1


def _key(number: int) -> str:
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives a restart of the workers
    return f"cpift/{again}/{number}"


def _store() -> Any:
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    store.set_timeout(_PATIENCE)
    return store
