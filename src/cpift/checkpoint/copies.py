"""Tensors of the inputs that are no parameters: copied into the fused checkpoint, so that none is dropped.

Buffers are copied as they are. The second name of a tied pair gets the same fused values as the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cpift.checkpoint.stream import BLOCK, Checkpoint
from cpift.checkpoint.tensor import Tensor
from cpift.checkpoint.ties import same_elements
from cpift.errors import CpiftError


@dataclass
class Copies:
    """What is copied: buffer to the model it comes from, and alias to the parameter it repeats."""

    buffers: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    models: dict[str, Checkpoint] = field(default_factory=dict)

    @classmethod
    def collect(cls, models: Mapping[str, Checkpoint]) -> Copies:
        """Gather what the models hold beside parameters.

        Args:
            models: aligned, by name, the one that buffers are taken from first.

        Raises:
            CpiftError: a buffer of one model is a parameter of another.
        """
        made = cls(models=dict(models))
        unlike: list[str] = []
        for label, model in models.items():
            for name, tensor in model.others.items():
                source = model.aliases.get(name)
                if source is not None:
                    made.aliases[name] = source
                    continue
                owner = made.buffers.setdefault(name, label)
                parameter = next((n for n, m in models.items() if name in m.tensors), None)
                if parameter is not None:
                    raise CpiftError(f"{model.path}: {name} is a buffer, yet a parameter in {models[parameter].path}")
                if owner != label and name not in unlike and not same_elements(models[owner].others[name], tensor):
                    unlike.append(name)
        if unlike:
            owner = made.buffers[unlike[0]]
            made.warnings.append(
                f"buffers differ between the checkpoints and are not fused: {', '.join(unlike[:4])}"
                + (f" and {len(unlike) - 4} more" if len(unlike) > 4 else "")
                + f"; the fused model gets {owner}'s"
            )
        return made

    def tensor(self, name: str) -> Tensor:
        """The buffer that is copied under this name."""
        return self.models[self.buffers[name]].others[name]

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """The buffer's stored elements, piece by piece, each with its place."""
        tensor = self.tensor(name)
        for start in range(0, tensor.size, BLOCK):
            yield start, self.models[self.buffers[name]].raw(name, start, min(start + BLOCK, tensor.size))

    def report(self) -> dict[str, object]:
        """For ``fusion.json``."""
        return {"copied": dict(self.buffers), "tied": dict(self.aliases)}
