"""A weight in 4 bit (NF4) by bitsandbytes, an optional library: a quarter of its bytes in bf16, expanded in each pass."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from cpift.checkpoint.library import library
from cpift.errors import CpiftError
from cpift.recipe.adapter import Adapter

KIND, BLOCK = "nf4", 64  # bitsandbytes' own choice for QLoRA; weights of a block share one fp32 scale


def check_four_bit(adapter: Adapter, where: str) -> None:
    """Raise :class:`CpiftError` where an adapter needs bitsandbytes and it is not installed.

    Args:
        adapter: as the recipe has it.
        where: its place in the recipe, for the message.
    """
    if adapter.kind.four_bit and find_spec("bitsandbytes") is None:
        raise CpiftError(
            f"{where}.type: {adapter.type} needs bitsandbytes; pip install bitsandbytes, or take type lora"
        )


class FourBit(nn.Module):
    """A weight that is kept in 4 bit.

    Args:
        weight: float32, of any shape.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    values: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        packed, state = _bitsandbytes().quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type=KIND)
        self.shape = weight.shape
        # They follow from the weight, so that a training that resumes makes them again.
        for name, tensor in {"packed": packed, "scales": state.absmax, "values": state.code}.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self) -> torch.Tensor:
        """The weight as 4 bit have it, float32."""
        functional = _bitsandbytes()
        state = functional.QuantState(self.scales, self.shape, self.values, BLOCK, KIND, torch.float32)
        expanded: torch.Tensor = functional.dequantize_4bit(self.packed, state)
        return expanded


def _bitsandbytes() -> Any:
    return library("bitsandbytes.functional")
