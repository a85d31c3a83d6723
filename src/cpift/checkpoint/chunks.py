"""A block of several checkpoints, piece by piece, in a buffer that stays in the processor's cache.

A page of a file that is mapped costs more than the copy of its bytes, and what is copied lies in the cache for all that
is done with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cpift.checkpoint.stream import Block, Checkpoint, native
from cpift.errors import CpiftError
from cpift.kernels.loops import Loops, loops_for
from cpift.kernels.threads import thread_local_scratch

CACHED = 2**20  # bytes of all checkpoints in work at a time
_STEP = 2**11  # elements; a multiple of every strip


class Chunk(NamedTuple):
    """Elements ``start`` to ``stop`` of a block; valid until the next chunk.

    Attributes:
        start: first element, counted from the block's.
        stop: one behind the last.
        raw: the elements of each checkpoint as stored, (stop - start,).
        stored: the same in a type that the kernels know.
        addresses: of ``stored``, int64 (m,).
        itemsizes: of one element of ``stored``, int64 (m,).
    """

    start: int
    stop: int
    raw: list[np.ndarray]
    stored: list[np.ndarray]
    addresses: np.ndarray
    itemsizes: np.ndarray


def chunks(
    models: Sequence[Checkpoint], block: Block, size: int | None = None, loops: Loops | None = None
) -> Iterator[Chunk]:
    """Read a block of ``models``, in order.

    Args:
        models: checkpoints with the same parameters.
        block: what of them.
        size: elements of a chunk; by default as many as fit in the cache.
        loops: that read; by default those for the size of the block.

    Raises:
        CpiftError: a file that ends too early, or cannot be read.
    """
    name, start, stop = block
    tensors = [model.tensors[name] for model in models]
    read_into = (loops or loops_for((stop - start) * len(models))).read_into
    if size is None:
        size = max(_STEP, CACHED // sum(t.itemsize for t in tensors) // _STEP * _STEP)
    size = min(size, stop - start)
    places = [t.place(start) if t.dtype != "F16" else None for t in tensors]
    room = [0 if place is None else -(-size * t.itemsize // 64) * 64 for t, place in zip(tensors, places, strict=True)]
    buffer = thread_local_scratch("chunks", sum(room), np.uint8)
    begins = np.cumsum([0, *room])
    raw, stored = [], []
    for i, (tensor, place) in enumerate(zip(tensors, places, strict=True)):
        if place is None:
            whole = models[i].raw(*block, ahead=True)
            raw.append(whole)
            stored.append(native(whole))
        else:
            raw.append(buffer[begins[i] : begins[i] + size * tensor.itemsize].view(tensor.numpy_dtype))
            stored.append(raw[-1])
    addresses = np.array([part.ctypes.data for part in stored], np.int64)
    itemsizes = np.array([part.itemsize for part in stored], np.int64)
    descriptors = np.array([-1 if place is None else place[0] for place in places], np.int64)
    offsets = np.array([0 if place is None else place[1] for place in places], np.int64)
    moving = itemsizes * (descriptors < 0)  # what is computed lies there whole
    reads, computed = bool((descriptors >= 0).any()), bool((descriptors < 0).any())
    nbytes = size * itemsizes
    for low in range(0, stop - start, size):
        n = min(size, stop - start - low)
        if n < size:
            nbytes = n * itemsizes
        failed = read_into(descriptors, offsets, nbytes, addresses) if reads else -1
        if failed >= 0:
            raise _failure(models[failed], name)
        if n == size and not computed:
            yield Chunk(low, low + n, raw, stored, addresses, itemsizes)
        else:
            here = [slice(low, low + n) if place is None else slice(n) for place in places]
            cut, ready = ([part[i] for part, i in zip(parts, here, strict=True)] for parts in (raw, stored))
            yield Chunk(low, low + n, cut, ready, addresses + low * moving, itemsizes)
        offsets += nbytes


def _failure(model: Checkpoint, name: str) -> CpiftError:
    (file,) = model.tensors[name].files
    return CpiftError(
        f"{file}: {name} cannot be read; the file was cut or replaced while it was read, or its disk fails"
    )
