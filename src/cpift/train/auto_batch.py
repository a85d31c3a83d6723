"""``training.auto_batch``: smaller batches and more accumulation where a training runs out of memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpift.distributed import ranks
from cpift.errors import CpiftError

KEY = "auto_batch"
_BATCH, _PASSES, _DROPS = "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last"


def asked(training: Mapping[str, Any]) -> bool:
    """Does the recipe ask for it?"""
    return training.get(KEY) is True


def check_auto_batch(training: Mapping[str, Any], where: str = "training") -> None:
    """Check the key, and that a smaller batch would leave the rows of a step as they are.

    Args:
        training: the recipe's settings of a stage.
        where: their place in the recipe, for the message.

    Raises:
        CpiftError: neither true nor false; several processes; or with ``dataloader_drop_last``.
    """
    if not isinstance(training.get(KEY, False), bool):
        raise CpiftError(f"{where}.{KEY}: must be true or false (got {training[KEY]!r})")
    if asked(training) and training.get(_DROPS):
        raise CpiftError(f"{where}.{KEY}: not with {_DROPS}, where the batch decides which rows are dropped")
    if asked(training) and ranks.size() > 1:  # the others would wait for the process that has no memory
        raise CpiftError(f"{where}.{KEY}: works with one process; under a launcher leave it out and set {_BATCH}")


def halved(training: Mapping[str, Any], default: int) -> dict[str, Any] | None:
    """The settings with half the rows of a pass, or fewer, and the same rows a step; None at one row.

    Args:
        training: the recipe's settings of a stage.
        default: rows of a pass where the recipe does not say.
    """
    batch, passes = int(training.get(_BATCH, default)), int(training.get(_PASSES, 1))
    if batch == 1:
        return None
    smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)  # of 6: 3, then 1
    return {**training, _BATCH: smaller, _PASSES: passes * batch // smaller}


def describe(training: Mapping[str, Any]) -> str:
    """Batch and accumulation of :func:`halved` settings, for a message."""
    return f"batches of {training[_BATCH]} with {_PASSES} {training[_PASSES]}, the same rows a step"
