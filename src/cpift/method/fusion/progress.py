"""How far a fusion has come: kept beside the shards that are whole, for a call that resumes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cpift.checkpoint.stream import Checkpoint
from cpift.checkpoint.writer import PROGRESS, CheckpointWriter
from cpift.method.fusion.report import TensorReport


@dataclass
class Progress:
    """What is known of each tensor.

    Attributes:
        tensors: its report; counts of core positions are those of its last writing.
        checksums: of its blocks, 16 hex digits each, one text for each different model.
    """

    tensors: dict[str, TensorReport] = field(default_factory=dict)
    checksums: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, writer: CheckpointWriter) -> Progress:
        """What an earlier call has kept; empty where there is nothing."""
        kept = writer.load(PROGRESS)
        return cls(**kept) if kept else cls()

    def store(self, writer: CheckpointWriter) -> None:
        """Keep it."""
        writer.store(PROGRESS, {"tensors": self.tensors, "checksums": self.checksums})

    def fingerprint(self, model: Checkpoint, number: int) -> str:
        """Fingerprint of a model, once all of its tensors were read.

        Args:
            model: the checkpoint.
            number: its place in the lists of checksums.
        """
        hasher = model.hasher()
        for name in model.tensors:
            hasher.add(bytes.fromhex(self.checksums[name][number]))
        return hasher.hexdigest()
