"""A character-level transformer of 0.87 million parameters, all of them in one flat vector.

A core region is then a mask over that vector, and a merge of models is arithmetic on vectors. Padding stands at the end
of a row, and attention is causal, so that no mask is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.nn import functional

POSITIONS = 40  # longest row, in characters


@dataclass(frozen=True)
class Network:
    """The shape of the model, and where each tensor lies in the flat vector.

    Attributes:
        vocabulary: number of characters.
        layers: number of blocks.
        width: of the residual stream.
        heads: of the attention.
        inner: width of the feed-forward part.
        half: compute in bf16 (the vector stays fp32).
        shapes: of each tensor, in the order of the vector.
    """

    vocabulary: int
    layers: int = 4
    width: int = 128
    heads: int = 4
    inner: int = 576
    half: bool = True
    shapes: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        shapes: dict[str, tuple[int, ...]] = {
            "embed": (self.vocabulary, self.width),
            "positions": (POSITIONS, self.width),
        }
        for i in range(self.layers):
            shapes |= {
                f"{i}.norm1": (self.width,),
                f"{i}.qkv": (3 * self.width, self.width),
                f"{i}.out": (self.width, self.width),
                f"{i}.norm2": (self.width,),
                f"{i}.up": (self.inner, self.width),
                f"{i}.down": (self.width, self.inner),
            }
        object.__setattr__(self, "shapes", shapes | {"norm": (self.width,)})

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @property
    def count(self) -> int:
        """Number of parameters (D)."""
        return sum(self.sizes)

    def initial(self, seed: int) -> torch.Tensor:
        """A random start, float32 (D,)."""
        rng = torch.Generator().manual_seed(seed)
        parts = []
        for name, shape in self.shapes.items():
            if len(shape) == 1:
                parts.append(torch.ones(shape))
                continue
            scale = 0.02 if shape[0] in (self.vocabulary, POSITIONS) else shape[1] ** -0.5
            if name.endswith((".out", ".down")):
                scale /= math.sqrt(2 * self.layers)
            parts.append(torch.randn(shape, generator=rng) * scale)
        return torch.cat([part.flatten() for part in parts])

    def tensors(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of the vector by name."""
        parts = flat.split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def bottom_half(self) -> torch.Tensor:
        """Which elements are embeddings or in the lower half of the blocks, bool (D,)."""
        low = tuple(f"{i}." for i in range(self.layers // 2))
        parts = [
            torch.full((math.prod(shape),), name in ("embed", "positions") or name.startswith(low))
            for name, shape in self.shapes.items()
        ]
        return torch.cat(parts)

    def logits(self, flat: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Next-character logits.

        Args:
            flat: the parameters, float32 (D,).
            ids: characters, int64 (rows, length).

        Returns:
            float32 (rows, length, vocabulary).
        """
        weights = self.tensors(flat.to(torch.bfloat16) if self.half else flat)
        rows, length = ids.shape
        x = functional.embedding(ids, weights["embed"]) + weights["positions"][:length]
        for i in range(self.layers):
            y = functional.layer_norm(x, (self.width,), weights[f"{i}.norm1"])
            qkv = functional.linear(y, weights[f"{i}.qkv"])
            qkv = qkv.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.float()  # the backward pass of attention in bf16 is ten times slower on a CPU
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            y = y.transpose(1, 2).reshape(rows, length, self.width).to(x.dtype)
            x = x + functional.linear(y, weights[f"{i}.out"])
            y = functional.layer_norm(x, (self.width,), weights[f"{i}.norm2"])
            x = x + functional.linear(functional.gelu(functional.linear(y, weights[f"{i}.up"])), weights[f"{i}.down"])
        x = functional.layer_norm(x, (self.width,), weights["norm"])
        return functional.linear(x, weights["embed"]).float()
