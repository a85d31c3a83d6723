"""Memory on a processor is kept between the steps of a training, where the system would take each large tensor back."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


@contextmanager
def kept_memory() -> Iterator[None]:
    """Take memory for tensors from a heap that does not shrink, and give it back at the end.

    By default glibc maps each large tensor again and clears its memory, which takes a quarter of a step's time on a
    processor (docs/benchmarks-notes.md). Values stay the same. Without effect on other C libraries, and where an
    accelerator does the work: its tensors are not in this memory.
    """
    if _libc is None or torch.accelerator.is_available():
        yield
        return
    _libc.mallopt(_MMAP_MAX, 0)
    _libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        for setting, value in _DEFAULTS.items():
            _libc.mallopt(setting, value)
        trim()


def trim() -> None:
    """Give free memory back to the system, where glibc keeps it."""
    if _libc is not None:
        _libc.malloc_trim(0)
