"""Memory is kept between steps, and given back at the end."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
# In a process of its own: how the heap lies in this one depends on the tests before.
SCRIPT = """
import json, resource, torch
from cpift.train.malloc import kept_memory

ELEMENTS, TENSORS = 10**7, 8  # as the gradients of a step: all are taken, then all are dropped

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        held = [torch.ones(ELEMENTS) for _ in range(TENSORS)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
without = faults(6)
with kept_memory():
    faults(2)  # the heap grows
    within, held = faults(6), resident()
print(json.dumps([without, within, held - resident(), 4 * ELEMENTS * TENSORS]))
"""


def test_large_tensors_are_not_mapped_anew_each_time() -> None:
    """Page faults of taking and dropping 320 MB six times; at the end the memory goes back."""
    told = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout
    without, within, given_back, size = json.loads(told)
    assert within < without / 4
    assert given_back > 0.8 * size
