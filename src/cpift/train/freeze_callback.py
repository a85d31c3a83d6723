"""Frozen regions in anyone's ``Trainer``: transformers is all that it needs, of any version that has callbacks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cpift.errors import CpiftError
from cpift.method.freeze import freeze
from cpift.method.region import Region


class FreezeCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps a region bit-identical during a ``Trainer``'s training: ``Trainer(..., callbacks=[FreezeCallback(region)])``.

    Raises :class:`CpiftError` at the end of the training where a frozen element changed all the same. Give it as the last
    of the callbacks, so that it sees what the others did.
    """

    def __init__(self, region: Region) -> None:
        self.region, self.count, self.changed = region, 0, 0
        self._stack = ExitStack()
        self._frozen: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze the region."""
        self._frozen = self._stack.enter_context(freeze(kwargs["model"], self.region, kwargs["optimizer"]))
        self.count = self._frozen.count

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the region go, and check it."""
        self.changed = self._frozen.changed()
        self.release()
        if self.changed:
            raise CpiftError(
                f"{self.changed} of {self.count} frozen elements changed: the optimizer or a callback puts other weights "
                "in place, such as an average; train without it"
            )

    def release(self) -> None:
        """Remove the hooks, and drop the values kept; done by itself at the end of a training."""
        self._stack.close()
        self._frozen = None
