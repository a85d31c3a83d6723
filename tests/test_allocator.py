"""Memory is kept between steps, and given back at the end."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from cpift.allocator import kept_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
ELEMENTS = 16 * 2**20  # 64 MiB in fp32


def _faults(times: int) -> int:
    """Page faults of taking, filling and dropping a large tensor so many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(ELEMENTS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _resident() -> int:
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * resource.getpagesize()


def test_a_large_tensor_is_not_mapped_anew_each_time() -> None:
    without = _faults(6)
    with kept_memory():
        _faults(1)  # the heap grows once
        within = _faults(6)
    assert within < without / 4


def test_memory_goes_back_at_the_end() -> None:
    with kept_memory():
        torch.ones(ELEMENTS)
        held = _resident()
    assert _resident() < held - ELEMENTS * 4 * 0.8
    assert _faults(6) > 6  # and the system's habits are back
