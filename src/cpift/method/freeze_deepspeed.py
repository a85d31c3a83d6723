"""Freezing under DeepSpeed ZeRO 1, 2 and 3: the optimizer's step is taken back at the region's positions.

ZeRO trains a copy of the weights in fp32, of which each process holds a part, and makes the model's weights from it
after each step. So the values are kept and written back there, in the step, before the model's weights are made. The
gradient is zeroed where it lies, in parts as well, just before the norm is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from cpift.checkpoint.library import library
from cpift.errors import CpiftError
from cpift.method.freeze_hooks import after_changes

_KNOWN = ("DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3")  # stages 1 and 2; stage 3


class _Part:
    """The frozen elements of one parameter that this process holds: [first, first + length) of its flat positions."""

    def __init__(self, parameter: nn.Parameter, positions: object, first: int, length: int) -> None:
        self.parameter = parameter
        flat = np.asarray(positions, dtype=np.int64)
        inside = flat[(flat >= first) & (flat < first + length)] - first
        master = self.master()
        self.positions = torch.as_tensor(inside, device=master.device)
        self.values = master[self.positions].clone()

    @property
    def count(self) -> int:
        """Frozen elements of this part."""
        return len(self.positions)

    def master(self) -> torch.Tensor:
        """This process's part of the fp32 weights: flat, a view or a copy."""
        raise NotImplementedError

    def write(self, master: torch.Tensor) -> None:
        """Put back what :meth:`master` gave."""

    def clear_gradient(self) -> None:
        raise NotImplementedError

    def restore(self) -> None:
        master = self.master()
        master.index_copy_(0, self.positions, self.values)
        self.write(master)

    def changed(self) -> int:
        return int((self.master()[self.positions].view(torch.int32) != self.values.view(torch.int32)).sum())


class _Fragment(_Part):
    """Of stages 1 and 2: a process's part of all parameters, one after the other, is a fragment of some of them."""

    def master(self) -> torch.Tensor:
        mapping: Any = self.parameter._hp_mapping  # type: ignore[attr-defined]
        return mapping.hp_fragment.data.view(-1)  # type: ignore[no-any-return]

    def clear_gradient(self) -> None:
        mapping: object = self.parameter._hp_mapping  # type: ignore[attr-defined]
        gradient = mapping.get_lp_grad_fragment(self.parameter._index_in_param_group)  # type: ignore[attr-defined]
        gradient.data.view(-1).index_fill_(0, self.positions.to(gradient.device), 0)


class _Partition(_Part):
    """Of stage 3: each process has an equal part of each parameter."""

    def master(self) -> torch.Tensor:
        return library("deepspeed.utils").safe_get_local_fp32_param(self.parameter).data.view(-1)  # type: ignore[no-any-return]

    def write(self, master: torch.Tensor) -> None:
        library("deepspeed.utils").safe_set_local_fp32_param(self.parameter, master)

    def clear_gradient(self) -> None:
        utils = library("deepspeed.utils")
        gradient = utils.safe_get_local_grad(self.parameter).view(-1)
        gradient.index_fill_(0, self.positions.to(gradient.device), 0)
        utils.safe_set_local_grad(self.parameter, gradient)


def zero_optimizer(optimizer: object) -> Any:
    """DeepSpeed's ZeRO optimizer in ``optimizer`` (accelerate wraps it); None where it is not DeepSpeed's.

    Raises :class:`CpiftError` for one of DeepSpeed's that is no plain ZeRO.
    """
    while optimizer is not None:
        kind = type(optimizer)
        if any(base.__name__ == "DeepSpeedOptimizer" for base in kind.__mro__):
            if kind.__name__ not in _KNOWN or getattr(optimizer, "swap_optimizer", False):
                raise CpiftError(
                    f"freeze: DeepSpeed's {kind.__name__} is not supported; use ZeRO without offload to NVMe"
                )
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def is_zeros(parameter: nn.Parameter) -> bool:
    """Is this a parameter that a ZeRO optimizer of DeepSpeed has in hand?"""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


@contextmanager
def frozen_under_zero(
    zero: Any, parameters: Mapping[str, nn.Parameter], positions: Mapping[str, Any]
) -> Iterator[list[_Part]]:
    """Keep elements of parameters bit-identical in the fp32 weights.

    Args:
        zero: DeepSpeed's optimizer, see :func:`zero_optimizer`.
        parameters: by name.
        positions: row-major positions to keep, by the same names.

    Yields:
        The frozen elements that this process holds, by parameter.
    """
    parts = [part for name, parameter in parameters.items() if (part := _part(parameter, positions[name])) is not None]
    parts = [part for part in parts if part.count]
    step = zero.step

    def clear_and_step(*arguments: object, **options: object) -> Any:
        for part in parts:
            part.clear_gradient()
        return step(*arguments, **options)

    def restore(*_: object) -> None:
        with torch.no_grad():
            for part in parts:
                part.restore()

    inner = [zero.optimizer, getattr(zero, "backup_optimizer", None)]  # the second one: stage 3 offloaded in part
    with ExitStack() as stack:
        for one in inner:
            stack.enter_context(after_changes(one, restore))
        zero.step = clear_and_step
        try:
            yield parts
        finally:
            zero.step = step


def _part(parameter: Any, positions: Any) -> _Part | None:
    """None where this process holds nothing of the parameter, or nobody trains it."""
    if not parameter.requires_grad:
        return None
    if hasattr(parameter, "ds_id"):
        length = parameter.ds_tensor.numel()
        rank = torch.distributed.get_rank(parameter.ds_process_group)
        return _Partition(parameter, positions, rank * length, length)
    if parameter._hp_mapping is None:
        return None
    address = parameter._hp_mapping.lp_fragment_address
    return _Fragment(parameter, positions, address.start, address.numel)
