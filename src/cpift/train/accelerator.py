"""The device that models run on: its name, its memory, the precision of scoring, and how a stage leaves it empty."""

from __future__ import annotations

import functools
import gc
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

from cpift.errors import CpiftError, OutOfMemory, causes, is_out_of_memory
from cpift.train.malloc import trim
from cpift.typing import Network

P = ParamSpec("P")
T = TypeVar("T")
_RESERVE = 0.1  # share of a device that batches leave free: fragments, workspaces of its libraries

_OWN_CONTEXT = 2 * 2**30  # bytes: more than CUDA itself takes for a process


def device() -> torch.device:
    """Where models run: the accelerator, or the processor where there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def bf16_helps(on_cpu: bool | None = False) -> bool:
    """Does the device, or with ``on_cpu`` the processor, multiply bf16 faster than fp32?

    Of processors, those with AMX do. With AVX512-BF16 alone, matrix products were measured at two thirds of the speed
    of fp32 or less (docs/benchmarks-notes.md).
    """
    kind = "cpu" if on_cpu else device().type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind != "cpu" or bool(torch.cpu._is_amx_tile_supported())


def scoring_precision(dtype: str = "auto") -> str:
    """How models are scored here: ``bf16 autocast`` over fp32 weights on an accelerator, ``fp32`` on a processor.

    Args:
        dtype: ``float32``: in fp32 everywhere.
    """
    return "bf16 autocast" if dtype == "auto" and device().type != "cpu" and bf16_helps() else "fp32"


def scoring_autocast(network: Network, dtype: str = "auto") -> AbstractContextManager[object]:
    """The context of :func:`scoring_precision` for a model on its device.

    Each weight is cast once and kept, half as much memory again; each time anew where that would crowd the batches out.
    """
    if scoring_precision(dtype) == "fp32":
        return nullcontext()
    copies, free = 2 * sum(parameter.numel() for parameter in network.parameters()), available()
    return torch.autocast(device().type, torch.bfloat16, cache_enabled=free is None or 2 * copies < free)


def describe() -> str:
    """The device and its memory, for a message: ``NVIDIA H100 80GB HBM3 (79.2 GiB)``."""
    kind = device().type
    if kind == "cuda":
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{card.name} ({card.total_memory / 2**30:.1f} GiB)"
    return "the processor" if kind == "cpu" else f"the {kind} device"


def lacking(error: BaseException) -> str:
    """Whose memory an out-of-memory error is about: the device's, or the machine's own."""
    own = any(isinstance(cause, MemoryError) or "DefaultCPUAllocator" in str(cause) for cause in causes(error))
    others = 0 if own else held_by_others()
    held = f", of which other processes hold {others / 2**30:.1f} GiB," if others > _OWN_CONTEXT else ""
    return "the processor" if own else describe() + held


def held_by_others() -> int:
    """Bytes of the device that are taken, and not by this process's tensors or the cache for them."""
    if device().type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def spread(network: object) -> bool:
    """Has transformers put the layers on several devices (device_map)?"""
    return len(set(map(str, getattr(network, "hf_device_map", {}).values()))) > 1


def check_trainable(network: object) -> None:
    """Raise :class:`CpiftError` where a device_map has left layers outside of the accelerators' memory."""
    held = set(map(str, getattr(network, "hf_device_map", {}).values()))
    outside = held & ({"cpu", "disk"} if device().type != "cpu" else {"disk"})
    if outside:
        raise CpiftError(
            f"model.device_map: the model does not fit on the devices, layers are left on {' and '.join(sorted(outside))}, and "
            "these cannot be trained; take a probe.adapter, model.dtype bfloat16, or more devices"
        )


def place(network: Network) -> Any:
    """Put a model on the device, ready to score.

    Raises:
        OutOfMemory: the model alone is too large for what is free.
    """
    if spread(network):
        return network.eval()
    try:
        return network.to(device()).eval()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
        raise OutOfMemory(
            f"out of memory on {lacking(error)}: the model's weights alone take {size / 2**30:.1f} GiB; "
            "end what else uses the device, or hide it to score on the processor (CUDA_VISIBLE_DEVICES=)"
        ) from error


def available() -> int | None:
    """Bytes of device memory that batches may take now; None where the device does not report its memory."""
    if device().type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # held by torch, for the next tensors
    return max(0, free + cached - int(_RESERVE * total))


def free_share() -> float | None:
    """What :func:`available` is of the device's whole memory; None where the device does not report it."""
    free = available()
    return None if free is None else free / torch.cuda.mem_get_info()[1]


def reset_peak() -> None:
    """Let :func:`peak_memory` count from here."""
    for index in _devices():
        torch.accelerator.reset_peak_memory_stats(index)


def peak_memory() -> int | None:
    """Peak bytes of tensors on the device since the last reset, the largest of several devices; None without one."""
    return max((torch.accelerator.max_memory_allocated(index) for index in _devices()), default=None)


def memory() -> int | None:
    """Bytes of tensors on the device now, the largest of several devices; None without a device."""
    return max((torch.accelerator.memory_allocated(index) for index in _devices()), default=None)


def used() -> dict[str, object]:
    """Facts of a stage that has ended: the peak of the device since the last reset, what is still on it, and its name.

    {} without a device. The name is left out where nothing was on it: to ask for it would take its memory.
    """
    peak = peak_memory()
    if peak is None:
        return {}
    return {"peak_device_memory": peak, "device_memory_after": memory(), **({"device": describe()} if peak else {})}


def _devices() -> range:
    """Accelerators whose memory torch counts."""
    counts = torch.accelerator.is_available() and hasattr(torch.accelerator, "max_memory_allocated")
    return range(torch.accelerator.device_count() if counts else 0)


def release() -> None:
    """Free what nothing refers to any more, reference cycles included, and give cached memory back.

    A trainer, its model and its optimizer refer to each other. Without a collection they stay in memory beside the next
    stage's.
    """
    gc.collect()
    if torch.accelerator.is_available():
        empty = getattr(torch.accelerator, "empty_cache", torch.cuda.empty_cache)
        empty()
    trim()


def frees_memory(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: at the end of the call, also by an exception, nothing that it loaded stays in memory."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            forget_locals(error)
            raise
        finally:
            release()

    return wrapped


def forget_locals(error: BaseException) -> None:
    """Clear the local variables of the calls that have ended by this error: they would keep a model as long as it lives."""
    for cause in causes(error):
        traceback.clear_frames(cause.__traceback__)
