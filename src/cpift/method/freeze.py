"""Stage 4, refine: keep a region bit-identical while everything else is trained (paper section 3.4).

Zeroing a gradient freezes nothing: AdamW moves a parameter by its momentum and by weight decay at zero gradient. So
the gradient is zeroed as soon as it is accumulated (clipping then counts only what is free), *and* the saved
values are written back after each step of the optimizer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from cpift.checkpoint.names import plain_name, plain_names
from cpift.errors import CpiftError
from cpift.method.freeze_deepspeed import frozen_under_zero, is_zeros, zero_optimizer
from cpift.method.freeze_hooks import after_changes
from cpift.method.memory_names import prefixes_of, region_in_memory, resolve
from cpift.method.region import Region

_MASKED_FROM = (
    0.1  # share of a parameter from which a bit mask is kept: positions are faster, and take more from 1.6 % on
)
_CHUNK = 2**22  # elements whose mask is unpacked at once


@dataclass
class _Frozen:
    parameter: nn.Parameter
    positions: torch.Tensor  # int64, within this process's shard
    values: torch.Tensor  # as on entry

    @property
    def count(self) -> int:
        return len(self.positions)

    def clear_gradient(self, *_: Any) -> None:
        if self.parameter.grad is not None:
            _flat(self.parameter.grad).index_fill_(0, self.positions, 0)

    def restore(self) -> None:
        _flat(self.parameter.data).index_copy_(0, self.positions, self.values)

    def changed(self) -> int:
        now = _flat(self.parameter.data)[self.positions]
        return int((_bits(now) != _bits(self.values)).sum())


@dataclass
class _Masked:
    """As :class:`_Frozen`, for a large share of a parameter: one bit for each of its elements in place of positions."""

    parameter: nn.Parameter
    mask: torch.Tensor  # uint8, one bit an element of this process's shard, the lowest first
    values: torch.Tensor  # of the frozen elements, as on entry, in their order
    starts: list[int]  # within values, of each chunk of the shard, and their number

    @property
    def count(self) -> int:
        return len(self.values)

    def clear_gradient(self, *_: Any) -> None:
        if self.parameter.grad is not None:
            for gradient, mask, _values in self._chunks(self.parameter.grad):
                gradient.masked_fill_(mask, 0)

    def restore(self) -> None:
        for now, mask, values in self._chunks(self.parameter.data):
            now.masked_scatter_(mask, values)

    def changed(self) -> int:
        chunks = self._chunks(self.parameter.data)
        return sum(int((_bits(now[mask]) != _bits(values)).sum()) for now, mask, values in chunks)

    def _chunks(self, tensor: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Elements, their mask (bool) and the values of the frozen ones; no more than a chunk's mask is unpacked at once."""
        flat = _flat(tensor)
        for number, (first, last) in enumerate(pairwise(self.starts)):
            part = flat[number * _CHUNK : (number + 1) * _CHUNK]
            mask = unpacked(self.mask[number * _CHUNK // 8 : (number + 1) * _CHUNK // 8])[: len(part)]
            yield part, mask, self.values[first:last]


def packed(mask: torch.Tensor) -> torch.Tensor:
    """A mask as one bit an element.

    Args:
        mask: bool, (n,).

    Returns:
        uint8, (⌈n/8⌉,); the first element is the lowest bit.
    """
    whole = torch.nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (whole << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpacked(bits: torch.Tensor) -> torch.Tensor:
    """What :func:`packed` has packed: bool, (8·m,) of uint8, (m,)."""
    return torch.index_select(_bytes_of(bits.device), 0, bits.int()).view(torch.bool)


@functools.cache
def _bytes_of(device: torch.device) -> torch.Tensor:
    """Of each byte its eight bits as bytes, read as one int64: (256,)."""
    bits = (torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device)) & 1
    return bits.to(torch.uint8).contiguous().view(torch.int64).view(-1)


class Frozen:
    """What :func:`freeze` yields: how much is frozen, and whether it still is what it was."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts

    @property
    def count(self) -> int:
        """Frozen elements held by this process."""
        return sum(part.count for part in self._parts)

    def changed(self) -> int:
        """Frozen elements whose bits differ from those on entry; anything but 0 is an error of the caller's loop."""
        return sum(part.changed() for part in self._parts)


@contextmanager
def freeze(model: nn.Module, region: Region, optimizer: torch.optim.Optimizer) -> Iterator[Frozen]:
    """Keep the elements of ``region`` at the values they have on entry, bit by bit, under any optimizer.

    Works with gradient clipping, accumulation, autocast, weight decay and an optimizer that already has momentum, wraps
    another (lookahead), or swaps weights in ``train()`` and ``eval()`` (schedule-free). Weights that something else swaps
    in, such as an average made by a callback, are not written back: :meth:`Frozen.changed` counts them.
    Parameters may be DTensors sharded by FSDP2, or be trained by DeepSpeed's ZeRO 1, 2 or 3 (give ``engine.optimizer``:
    its fp32 weights are what is kept). Names and positions are those of the checkpoint's files; where a model of
    transformers has others in memory (Mixtral's experts are one parameter there) they are converted as the model is saved.
    Names may lack or have the base-model prefix, or a wrapper's. Memory: 8 bytes for each position held by this
    process, and its value; from a tenth of a parameter on, its value and one bit for each element of the parameter.

    Args:
        model: whose parameters are trained, wrapped or not.
        region: the elements to keep.
        optimizer: the one whose step changes the parameters.

    Yields:
        A handle that counts the frozen elements, and those among them that have changed.

    Raises:
        CpiftError: lists the tensors of the region that have no parameter of the same name and shape, or need no
            gradient; a flat parameter of FSDP1; parameters of ZeRO with another optimizer than its own.
    """
    region = region_in_memory(model, region)
    parameters, zero = match_parameters(model, region), zero_optimizer(optimizer)
    _check_trained(parameters)
    if zero is not None:
        with frozen_under_zero(zero, parameters, region.positions) as held:
            yield Frozen(held)
        return
    if any(map(is_zeros, parameters.values())):
        raise CpiftError("freeze: DeepSpeed trains these parameters; use freeze(model, region, engine.optimizer)")
    parts = [_frozen(parameter, region.positions[name]) for name, parameter in parameters.items()]
    parts = [part for part in parts if part.count]

    def restore(*_: Any) -> None:
        with torch.no_grad():
            for part in parts:
                part.restore()

    handles: list[Any] = []
    for part in parts:
        handles.append(part.parameter.register_post_accumulate_grad_hook(part.clear_gradient))
    for part in parts:
        part.clear_gradient()  # of a backward pass made before entry
    try:
        with after_changes(optimizer, restore):
            yield Frozen(parts)
    finally:
        for handle in handles:
            handle.remove()


def _check_trained(parameters: Mapping[str, nn.Parameter]) -> None:
    """Where only an adapter is trained, what is frozen below it would change its effect all the same."""
    still = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if still:
        more = f", and {len(still) - 5} more" if len(still) > 5 else ""
        raise CpiftError(
            f"freeze: {', '.join(still[:5])}{more} needs no gradient, so there is nothing to freeze; leave it out of the "
            "region (region.exclude), or call requires_grad_(True) on it before"
        )


def match_parameters(model: nn.Module, region: Region) -> dict[str, nn.Parameter]:
    """The model's parameter for each name of the region. A tied pair is one parameter, under the input's name.

    The names are those in memory, see :func:`cpift.method.memory_names.region_in_memory`.
    """
    parameters = plain_names(dict(model.named_parameters()), "freeze")
    if any(name.endswith("_flat_param") or name == "flat_param" for name in parameters):
        raise CpiftError("freeze: FSDP1's flat parameters have no positions of their own; use FSDP2 (fully_shard)")
    prefixes = prefixes_of(model, parameters, region.positions)
    matches: dict[str, nn.Parameter] = {}
    taken: set[int] = set()
    missing = []
    for name, positions in region.positions.items():
        meant = resolve(name, parameters, prefixes) or resolve(plain_name(name), parameters, prefixes)
        match = parameters[meant] if meant is not None else None  # no guess between two
        shape = region.shapes.get(name)
        if (
            match is None
            or id(match) in taken  # nor two names for one
            or int(positions[-1]) >= math.prod(_shape(match))
            or (shape and _shape(match) != tuple(shape))
        ):
            missing.append(name)
        else:
            matches[name] = match
            taken.add(id(match))
    if missing:
        more = f", and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise CpiftError(f"freeze: no parameter of the same name and shape for {', '.join(missing[:5])}{more}")
    return matches


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO 3 leaves it empty between uses


def _frozen(parameter: nn.Parameter, positions: Any) -> _Frozen | _Masked:
    local = _flat(parameter.data)
    index = torch.as_tensor(_local_positions(parameter, positions), dtype=torch.int64, device=local.device)
    if len(index) < _MASKED_FROM * local.numel():
        return _Frozen(parameter, index, local[index].clone())
    mask = torch.zeros(local.numel(), dtype=torch.bool, device=local.device)
    mask[index] = True
    counts = [int(mask[first : first + _CHUNK].sum()) for first in range(0, len(mask), _CHUNK)]
    return _Masked(parameter, packed(mask), local[mask], [0, *accumulate(counts)])


def _bits(values: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, which compare bit by bit."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.view(kinds[values.element_size()])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a DTensor, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    local = _local(tensor)
    if not local.is_contiguous():
        raise CpiftError("freeze: a parameter is not contiguous in memory; call .contiguous() on it first")
    return local.view(-1)


def _local_positions(parameter: Any, positions: Any) -> Any:
    """Global row-major positions to positions in this process's shard; those held elsewhere are dropped."""
    if not hasattr(parameter, "device_mesh"):
        return np.asarray(positions, dtype=np.int64)
    # Not every torch has it; where there is a mesh it does.
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: PLC0415

    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape,
        parameter.device_mesh,
        parameter.placements,
    )
    place = np.unravel_index(np.asarray(positions, dtype=np.int64), tuple(parameter.shape))
    here = np.ones(len(positions), np.bool_)
    for axis, length, first in zip(place, shape, offset, strict=True):
        here &= (axis >= first) & (axis < first + length)
    local = [axis[here] - first for axis, first in zip(place, offset, strict=True)]
    return np.ravel_multi_index(local, tuple(shape)) if here.any() else np.empty(0, np.int64)


def regions_by_name(regions: Mapping[str, Region], tasks: Sequence[str]) -> Region | None:
    """The union of the regions of ``tasks``; None where there is no task."""
    joined: Region | None = None
    for task in tasks:
        joined = regions[task] if joined is None else joined | regions[task]
    return joined
