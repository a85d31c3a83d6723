"""Scores of parameters, read block by block from checkpoints, and which parameters count."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cpift.checkpoint.align import excluded
from cpift.checkpoint.stream import Block, Checkpoint
from cpift.checkpoint.tensor import widen
from cpift.errors import CpiftError
from cpift.method.top_scores import Read


def counted(names: Iterable[str], include: Iterable[str] = (), exclude: Iterable[str] = ()) -> set[str]:
    """The parameters that count.

    Args:
        names: of all parameters.
        include: shell-style patterns; with any, only parameters that match one count.
        exclude: shell-style patterns; parameters that match one do not count.

    Raises:
        CpiftError: a pattern matches no parameter, or together they leave none.
    """
    every, include, exclude = list(names), list(include), list(exclude)
    kept = excluded(every, include, "include") if include else set(every)
    kept -= excluded(every, exclude)
    if every and not kept and include:
        raise CpiftError(f"include, exclude: {', '.join([*include, *exclude])} leave no parameter")
    return kept


def magnitudes(checkpoint: Checkpoint) -> Read:
    """Its elements."""
    return lambda block: _values(checkpoint, block)


def updates(origin: Checkpoint, tuned: Checkpoint) -> Read:
    """Δ = tuned − origin in fp32, of checkpoints with the same names."""
    return lambda block: _values(tuned, block) - _values(origin, block)


def _values(checkpoint: Checkpoint, block: Block) -> np.ndarray:
    """Elements of a block in fp32."""
    scratch = np.empty(block.stop - block.start, np.float32)
    return widen(checkpoint.raw(*block), checkpoint.tensors[block.name].dtype, scratch).astype(np.float32, copy=False)
