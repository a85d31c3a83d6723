"""The checkpoints as one stream of blocks: each tensor's Gram matrix, and at once its sum, while it is still in memory.

Every file is read from the disk once. Where one vector is the whole model (``vector: model``), its coefficients are known
only after all has been read, and everything is read a second time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cpift.checkpoint.stream import Block, blocks_of
from cpift.checkpoint.writer import CheckpointWriter, Layout
from cpift.kernels.threads import ordered_map
from cpift.method.fusion.block import fused_block
from cpift.method.fusion.coefficients import (
    BlockGram,
    TensorGram,
    block_gram,
    interpolated,
    update_angles,
)
from cpift.method.fusion.inputs import Inputs
from cpift.method.fusion.options import FusionOptions
from cpift.method.fusion.output import Output
from cpift.method.fusion.progress import Progress
from cpift.method.fusion.report import TensorReport
from cpift.method.interpolations import Combination


class _Step(NamedTuple):
    block: Block
    write: bool  # the sum is made and written; else the Gram matrix is made


@dataclass
class _Sum:
    """A tensor that is being written: core positions won and contested so far, and blocks still to come."""

    counts: np.ndarray
    left: int

    def add(self, counts: np.ndarray) -> None:
        self.counts += counts
        self.left -= 1


class FusionStream:
    """One fusion, resumable shard by shard.

    Args:
        inputs: what is fused.
        options: how.
        layout: type and shape of each tensor of the output.
        writer: of the output.
        threads: worker threads; None: one a core.
        progress: called with the number of bytes worked on since the last call; each byte is worked on twice.
    """

    def __init__(
        self,
        inputs: Inputs,
        options: FusionOptions,
        layout: Layout,
        writer: CheckpointWriter,
        threads: int | None,
        progress: Callable[[int], None],
    ) -> None:
        self._inputs, self._options, self._layout, self._writer = inputs, options, layout, writer
        self._threads, self._progress = threads, progress
        self._done = Progress.load(writer)
        self._output = Output(inputs, writer, before_close=lambda: self._done.store(writer))
        self._grams: dict[str, TensorGram] = {}  # of tensors whose coefficients are not known
        self._known: deque[str] = deque()  # tensors whose coefficients are known, and whose sum is not begun
        self._sums: dict[str, _Sum] = {}  # of tensors that are being written

    def run(self) -> tuple[dict[str, TensorReport], list[str]]:
        """Fuse what is not there yet.

        Returns:
            The report of each tensor, and the fingerprints of the models.

        Raises:
            CpiftError: weights that are no numbers, a region of another checkpoint, a value that the type cannot hold.
        """
        every = list(self._inputs.base.tensors)
        names = [name for name in every if self._output.wants(name)]
        self._output.write_buffers()
        if self._options.vector == "tensor":
            self._work(self._one_read(names))
        else:
            if not self._done.tensors:
                self._work(step for name in every for step in self._gram_steps(name))
                self._one_vector()
            self._inputs.check_regions(self._fingerprints())  # before anything is written
            self._work(step for name in names for step in self._sum_steps(name))
        prints = self._fingerprints()
        self._inputs.check_regions(prints)
        return {name: self._done.tensors[name] for name in every}, prints

    def _one_read(self, names: Iterable[str]) -> Iterator[_Step | None]:
        """Blocks for the Gram matrices, tensor by tensor; a tensor's sum comes as soon as its coefficients are known.

        None where that depends on results which are still to come.
        """
        for name in names:
            for step in self._gram_steps(name):
                yield from self._sums_due()
                yield step
        while self._grams or self._known:
            yield from self._sums_due()
            if self._grams:
                yield None

    def _sums_due(self) -> Iterator[_Step]:
        while self._known:
            yield from self._sum_steps(self._known.popleft())

    def _gram_steps(self, name: str) -> Iterator[_Step]:
        todo = list(blocks_of(self._inputs.base, name))
        self._grams[name] = TensorGram.empty(len(self._inputs.models), len(self._inputs.distinct), len(todo))
        for block in todo:
            yield _Step(block, write=False)

    def _sum_steps(self, name: str) -> Iterator[_Step]:
        todo = [*blocks_of(self._inputs.base, name), *self._inputs.rows.beyond(self._inputs.base, [name])]
        self._sums[name] = _Sum(np.zeros(len(self._inputs.tasks) + 1, np.int64), len(todo))
        self._output.open(name)
        for block in todo:
            yield _Step(block, write=True)

    def _work(self, steps: Iterable[_Step | None]) -> None:
        for step, result in ordered_map(self._do, steps, self._threads):
            name, start, stop = step.block
            if isinstance(result, BlockGram):
                gram = self._grams[name]
                gram.add(result)
                if not gram.left and self._options.vector == "tensor":
                    self._record(name, gram, interpolated(gram.gram, gram.free, self._options))
                    del self._grams[name]
                    self._known.append(name)
            else:
                total = self._sums[name]
                total.add(result)
                if not total.left:
                    self._count(name, self._sums.pop(name).counts)
                    self._output.finished(name)
            self._progress((stop - start) * sum(m.tensors[name].itemsize for m in self._inputs.models))

    def _do(self, step: _Step) -> BlockGram | np.ndarray:
        """In a worker thread."""
        name = step.block.name
        if not step.write:
            return block_gram(self._inputs, step.block)
        coefficients = np.array(self._done.tensors[name]["coefficients"])
        data, counts = fused_block(self._inputs, step.block, coefficients, self._options.rule, self._layout[name][0])
        self._output.write(step.block, data)
        return counts

    def _one_vector(self) -> None:
        """Coefficients of all tensors, where the whole model is one vector."""
        size = len(self._inputs.models)
        joint = sum((gram.gram for gram in self._grams.values()), np.zeros((size, size)))
        shared = interpolated(joint, sum(gram.free for gram in self._grams.values()), self._options)
        for name, gram in self._grams.items():
            self._record(name, gram, shared)
        self._grams.clear()
        self._done.store(self._writer)

    def _record(self, name: str, gram: TensorGram, shares: Combination) -> None:
        self._done.checksums[name] = [checksums.hex() for checksums in gram.checksums]
        self._done.tensors[name] = {
            "coefficients": shares.coefficients.tolist(),
            "angles": shares.angles,
            "norms": np.sqrt(np.diag(gram.gram)).tolist(),
            "update_angles": update_angles(gram.gram),
            "free": gram.free,
            "core": self._inputs.base.tensors[name].size - gram.free,
            "won": {},
            "contested": 0,
        }

    def _count(self, name: str, counts: np.ndarray) -> None:
        *won, contested = counts.tolist()
        self._done.tensors[name]["won"] = dict(zip(self._inputs.tasks, won, strict=True))
        self._done.tensors[name]["contested"] = contested

    def _fingerprints(self) -> list[str]:
        prints = [self._done.fingerprint(model, i) for i, model in enumerate(self._inputs.distinct)]
        return [prints[i] for i in self._inputs.places]
