"""Stages that train an adapter and write whole weights: W + mask ⊙ (scale · B·A), in the forward pass as in what is saved.

Frozen positions are copied from W, so that they keep every bit. The forward pass uses the very weight that is written;
with qlora W as 4 bit have it, and the update is put on W itself at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from cpift.errors import CpiftError
from cpift.method.freeze import match_parameters
from cpift.method.memory_names import region_in_memory
from cpift.method.region import Region
from cpift.recipe.adapter import Adapter
from cpift.train.four_bit import FourBit


class MaskedLowRank(nn.Module):
    """A parametrization: the weight with its low-rank update, but for the frozen positions.

    Args:
        weight: W, two-dimensional; it is not trained.
        adapter: rank and scale.
        frozen: row-major positions that keep W's value, int64 (n,); None: none.

    Attributes:
        whole: W in main memory, where the model holds 4 bits of it; None: the model holds W.
    """

    frozen: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, adapter: Adapter, frozen: torch.Tensor | None) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.empty(adapter.r, columns, dtype=torch.float32, device=weight.device))
        self.b = nn.Parameter(torch.zeros(rows, adapter.r, dtype=torch.float32, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as PEFT begins
        self.scale = adapter.scale
        self.whole = weight.to("cpu", copy=True) if adapter.kind.four_bit else None
        self.four_bit = FourBit(weight) if adapter.kind.four_bit else None
        self.register_buffer("frozen", frozen, persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight in use, float32. In 4 bit the argument is a mere placeholder."""
        with torch.autocast(weight.device.type, enabled=False):
            return self.on(weight if self.four_bit is None else self.four_bit())

    def on(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight with the update, but for the frozen positions, on the device of the weight."""
        a, b = self.a.to(weight.device), self.b.to(weight.device)
        merged = weight + self.scale * (b @ a)
        if self.frozen is not None:
            frozen = self.frozen.to(weight.device)
            merged = merged.view(-1).index_copy(0, frozen, weight.view(-1)[frozen]).view_as(weight)
        return merged


@dataclass(frozen=True)
class MergedAdapter:
    """The adapted modules of a model, and what is frozen in all of it.

    Attributes:
        modules: by name.
        count: frozen elements.
    """

    modules: Mapping[str, nn.Module]
    count: int

    def merge(self) -> int:
        """Put the weights in use in the place of W; the model is a plain one again.

        Returns:
            Frozen elements that have other bits than before: 0, unless something is wrong.
        """
        changed = 0
        for module in self.modules.values():
            held: Any = module  # torch types a module's attributes as tensors or modules
            low_rank: MaskedLowRank = held.parametrizations.weight[0]
            original, positions = held.parametrizations.weight.original.detach(), low_rank.frozen
            if low_rank.whole is not None:
                original, positions = low_rank.whole, None if positions is None else positions.cpu()
            before = None if positions is None else original.view(-1)[positions]
            with torch.no_grad():
                if low_rank.whole is None:
                    parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
                else:
                    parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
                    held.weight = nn.Parameter(low_rank.on(low_rank.whole), requires_grad=False)
            if before is not None:
                after = held.weight.detach().view(-1)[positions]
                changed += int((before.view(torch.int32) != after.view(torch.int32)).sum())
        return changed


def put_in(model: Any, adapter: Adapter, frozen: Region | None, seed: int) -> MergedAdapter:
    """Give the adapted modules a low-rank update, which alone is trained.

    Args:
        model: whole, float32.
        adapter: type, rank and modules.
        frozen: region that stays bit-identical, by the names of the checkpoint's files; None: nothing.
        seed: of A's first values.

    Raises:
        CpiftError: no module of the names given, or a region that does not fit the model.
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if _is_linear(module) and adapter.adapts(name) and module.weight.dim() == 2
    }
    owners = Counter(id(module.weight) for module in model.modules() if hasattr(module, "weight"))
    shared = [name for name, module in modules.items() if owners[id(module.weight)] > 1]
    if shared and adapter.kind.four_bit:
        raise CpiftError(f"adapter.type: {adapter.type} does not take {shared[0]}, whose weight another module shares")
    if not modules:
        raise CpiftError(f"adapter.target_modules: {adapter.target_modules} are the ends of no linear layer's name")
    positions: dict[int, np.ndarray] = {}
    count = 0
    if frozen is not None and frozen.count:
        region = region_in_memory(model, frozen)
        count = region.count
        positions = {id(p): region.positions[name] for name, p in match_parameters(model, region).items()}
    model.requires_grad_(False)
    torch.manual_seed(seed)
    for module in modules.values():
        place = positions.get(id(module.weight))
        indices = None if place is None else torch.as_tensor(np.asarray(place, np.int64), device=module.weight.device)
        low_rank = MaskedLowRank(module.weight.detach(), adapter, indices)
        if adapter.kind.four_bit:
            module.weight = nn.Parameter(torch.zeros(1, device=module.weight.device), requires_grad=False)
        # Unsafe: a placeholder has another shape than the weight that is made.
        parametrize.register_parametrization(module, "weight", low_rank, unsafe=adapter.kind.four_bit)
    return MergedAdapter(modules, count)


def _is_linear(module: nn.Module) -> bool:
    """A linear layer, GPT-2's own kind included."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
