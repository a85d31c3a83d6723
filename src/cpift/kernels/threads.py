"""Threads over a stream of work, results in order. numpy leaves the interpreter's lock while it computes."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike

from cpift.errors import CpiftError

A = TypeVar("A")
B = TypeVar("B")
_local = threading.local()
_LINE = 64  # bytes of a line of the cache


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Raise :class:`CpiftError` for a number of threads that is none."""
    if threads is not None and threads < 1:
        raise CpiftError(f"threads: {threads} is no number of threads; leave it out for one a core")


def ordered_map(work: Callable[[A], B], items: Iterable[A | None], threads: int | None = None) -> Iterator[tuple[A, B]]:
    """Yield ``(item, work(item))`` in the order of ``items``, worked on by threads, a few items ahead.

    Args:
        work: called in a worker thread.
        items: taken one by one. None says that the next one depends on results that are still to come: the oldest of
            these is then waited for and yielded first.
        threads: their number; None: one a core.
    """
    threads = core_count() if threads is None else threads
    pending: deque[tuple[A, Future[B]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                if item is not None:
                    pending.append((item, pool.submit(work, item)))
                if item is None or len(pending) > 2 * threads:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def thread_local_scratch(purpose: str, size: int, kind: DTypeLike) -> np.ndarray:
    """A scratch array of this thread, kept for the next call: allocation would cost as much as the arithmetic.

    It begins at a multiple of 64 bytes, as whole vector registers are loaded from it.
    """
    kept: np.ndarray | None = getattr(_local, purpose, None)
    if kept is None or len(kept) < size:
        nbytes = size * np.dtype(kind).itemsize
        room = np.empty(nbytes + _LINE, np.uint8)
        first = -room.ctypes.data % _LINE
        kept = room[first : first + nbytes].view(kind)
        setattr(_local, purpose, kept)
    return kept[:size]
