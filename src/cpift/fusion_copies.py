"""What a fused checkpoint holds beside parameters: buffers, such as batch-norm statistics and a router's correction biases.

No optimizer moves them, so there is nothing to fuse. They are copied from the backbone, whose weights they belong to;
one that the backbone lacks comes from the base.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cpift.checkpoint import BLOCK, Checkpoint

Layout = dict[str, tuple[str, tuple[int, ...]]]


class Copies:
    """The buffers of a fused checkpoint, and where each comes from."""

    def __init__(self, base: Checkpoint, backbone: Checkpoint) -> None:
        self._sources: dict[str, Checkpoint] = {}
        for checkpoint in (base, backbone):  # the later one stands
            # The second name of a tied pair is left out: it is made anew from the first as the model is loaded.
            names = set(checkpoint.others) - set(checkpoint.aliases) - set(base.tensors)
            self._sources |= dict.fromkeys(names, checkpoint)

    @property
    def layout(self) -> Layout:
        """Name to dtype and shape, as stored."""
        tensors = {name: checkpoint.others[name] for name, checkpoint in self._sources.items()}
        return {name: (tensor.dtype, tensor.shape) for name, tensor in sorted(tensors.items())}

    def write(self, shard: Any, names: Iterable[str]) -> list[str]:
        """Copy those of ``names`` that are buffers to the shard; returns the names that are left."""
        left = []
        for name in names:
            if name not in self._sources:
                left.append(name)
                continue
            size = self._sources[name].others[name].size
            for start in range(0, size, BLOCK):
                shard.write(name, start, self._sources[name].raw(name, start, min(start + BLOCK, size)).data)
        return left
