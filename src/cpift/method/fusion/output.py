"""The shards of the output that are not there yet: each is opened when it is needed, and closed when it is whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cpift.checkpoint.stream import Block
from cpift.checkpoint.writer import CheckpointWriter, Shard
from cpift.method.fusion.inputs import Inputs


class Output:
    """Where each tensor is written: under its own name, and under the second name of a tied pair.

    Args:
        inputs: what is fused.
        writer: of the output.
        before_close: called before a shard gets its name, to keep what is known of its tensors.
    """

    def __init__(self, inputs: Inputs, writer: CheckpointWriter, before_close: Callable[[], None]) -> None:
        self._inputs, self._before_close = inputs, before_close
        self._targets: dict[str, list[tuple[Shard, str]]] = {}
        self._left: dict[Shard, int] = {}  # names still to be written
        self._opened: set[Shard] = set()
        for shard in writer.missing_shards():
            sources = {name: inputs.copies.aliases.get(name, name) for name in shard.names}
            sources = {name: source for name, source in sources.items() if source in inputs.base.tensors}
            for name, source in sources.items():
                self._targets.setdefault(source, []).append((shard, name))
            self._left[shard] = len(sources)

    def wants(self, name: str) -> bool:
        """Is the parameter still to be written?"""
        return name in self._targets

    def write_buffers(self) -> None:
        """Write the shards that hold nothing but buffers."""
        for shard, left in self._left.items():
            if not left:
                self._open(shard)
                self._close(shard)

    def open(self, name: str) -> None:
        """Open the shards of a parameter, with the buffers that they hold."""
        for shard, _ in self._targets[name]:
            self._open(shard)

    def write(self, block: Block, data: np.ndarray) -> None:
        """Write a block, in the type of the output; several threads may."""
        for shard, name in self._targets[block.name]:
            shard.write(name, block.start, data.data)

    def finished(self, name: str) -> None:
        """All blocks of the parameter are written: close the shards that are whole now."""
        for shard, _ in self._targets[name]:
            self._left[shard] -= 1
            if not self._left[shard]:
                self._close(shard)

    def _open(self, shard: Shard) -> None:
        if shard in self._opened:
            return
        self._opened.add(shard)
        shard.open()
        for name in shard.names:
            if name in self._inputs.copies.buffers:
                for start, piece in self._inputs.copies.pieces(name):
                    shard.write(name, start, piece)

    def _close(self, shard: Shard) -> None:
        self._before_close()
        shard.close()
