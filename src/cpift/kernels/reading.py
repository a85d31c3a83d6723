"""Files read into memory that stays in the cache, compiled by numba, so that many short reads leave the interpreter alone."""

from __future__ import annotations

import numba
from numba import types

from cpift.kernels.intrinsics import pointer

_pread = types.ExternalFunction("pread", types.int64(types.int32, types.voidptr, types.uint64, types.int64))


@numba.njit(error_model="numpy")
def read_into(descriptors, offsets, sizes, addresses):  # type: ignore[no-untyped-def]
    """Read ``sizes`` bytes of open files, from ``offsets`` on, to ``addresses``: all int64, (n,).

    Files whose descriptor is negative are left out. Returns the number of the first that could not be read, or -1.
    """
    for i in range(descriptors.size):
        done = 0
        while descriptors[i] >= 0 and done < sizes[i]:
            got = _pread(descriptors[i], pointer(addresses[i] + done), sizes[i] - done, offsets[i] + done)
            if got <= 0:
                return i
            done += got
    return -1
