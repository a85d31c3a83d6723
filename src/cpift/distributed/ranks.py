"""Several processes at one run, started by torchrun or ``accelerate launch``: how many, which one leads, who gets which rows."""

from __future__ import annotations

import math
import os

from cpift.errors import CpiftError


def size() -> int:
    """Processes at this run; 1 where no launcher started it."""
    started = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if started else 1


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if size() == 1 else int(os.environ["RANK"])


def leads() -> bool:
    """Is this the one process that writes?"""
    return rank() == 0


def check() -> None:
    """Refuse ways of sharding under which a region could not be kept frozen.

    Raises:
        CpiftError: DeepSpeed, or FSDP1.
    """
    if _on("ACCELERATE_USE_DEEPSPEED"):
        raise CpiftError(
            "cpift run was not tried under DeepSpeed; use FSDP2: accelerate launch --use_fsdp --fsdp_version 2, "
            "or freeze() in a training loop of your own"
        )
    if _on("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise CpiftError(
            "FSDP1's flat parameters have no positions of their own; use FSDP2: accelerate launch --fsdp_version 2"
        )


def _on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def share(rows_each: int, accumulation: int, where: str = "training", processes: int | None = None) -> tuple[int, int]:
    """Rows in a forward pass and passes in a step, for each process, so that a step has the recipe's rows.

    A recipe says what one process would do. Shared among processes, the training is the same on one GPU and on eight.

    Args:
        rows_each: rows of one forward pass, by the recipe.
        accumulation: forward passes in a step, by the recipe.
        where: the part of the recipe, for the message.
        processes: how many share the rows; by default those of this run.

    Raises:
        CpiftError: the rows of a step are no multiple of the processes.
    """
    processes = size() if processes is None else processes
    common = math.gcd(accumulation, processes)
    parts = processes // common
    if rows_each % parts:
        raise CpiftError(
            f"{where}: {rows_each * accumulation} rows a step cannot be shared by {processes} processes; set "
            f"per_device_train_batch_size × gradient_accumulation_steps to a multiple of {processes}"
        )
    return rows_each // parts, accumulation // common
