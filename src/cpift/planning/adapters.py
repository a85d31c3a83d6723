"""What stages take that train an adapter in place of all parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cpift.checkpoint.stream import Checkpoint
from cpift.files.records import AdapterPlan
from cpift.planning.memory import Adapted
from cpift.recipe.adapter import Adapter
from cpift.recipe.recipe import Recipe

_TRAIN_BYTES = 16  # a trained parameter in fp32: weight, gradient, and AdamW's two moments
_BLOCK = 64  # weights in 4 bit that share one fp32 scale, in bitsandbytes' default


def adapter_plan(recipe: Recipe, base: Checkpoint) -> AdapterPlan | None:
    """Trained parameters of one probe, and its memory without activations; None where probes are whole models.

    Args:
        recipe: the recipe.
        base: its model.
    """
    adapter = recipe.probe.adapter
    if adapter is None:
        return None
    shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
    trained = adapter.parameters(shapes)
    weights = loaded_bytes(adapter, shapes, width_of(recipe))
    return {"parameters": trained, "memory": weights + trained * _TRAIN_BYTES}


def width_of(recipe: Recipe) -> int:
    """Bytes of a weight in training."""
    return 2 if recipe.dtype == "bfloat16" else 4


def loaded_bytes(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], width: int = 4, *, merged: bool = False
) -> int:
    """Bytes of the model beneath an adapter; with qlora its linear layers are in 4 bit, but for the head.

    Args:
        adapter: as the recipe has it.
        shapes: of the model's parameters by name.
        width: bytes of a weight; with qlora what is not in 4 bit is fp32.
        merged: are adapted layers alone in 4 bit, as in a stage that merges its adapter?
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not adapter.kind.four_bit:
        return width * sum(sizes.values())
    quantised = adapter if merged else Adapter()  # of a probe every linear layer, adapted or not
    packed = sum(
        size
        for name, size in sizes.items()
        if len(shapes[name]) == 2 and name.endswith(".weight") and quantised.adapts(name.removesuffix(".weight"))
    )
    return packed // 2 + 4 * -(-packed // _BLOCK) + 4 * (sum(sizes.values()) - packed)


def adapted(
    adapter: Adapter | None, shapes: Mapping[str, tuple[int, ...]], layers: int, width: int, *, merged: bool
) -> Adapted | None:
    """What the formulas of memory need to know of an adapter; None: all parameters are trained.

    Args:
        adapter: of the stage.
        shapes: of the model's parameters by name.
        layers: of the model.
        width: bytes of a weight.
        merged: does the stage train with the merged weights, and write them?
    """
    if adapter is None:
        return None
    maps = {
        name: math.prod(shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and adapter.adapts(name.removesuffix(".weight"))
    }
    return Adapted(
        trained=adapter.parameters(shapes),
        rank=adapter.r,
        maps=-(-len(maps) // max(layers, 1)),
        layer=-(-sum(maps.values()) // max(layers, 1)),
        weights=loaded_bytes(adapter, shapes, width, merged=merged),
        merged=merged,
        four_bit=adapter.kind.four_bit,
    )
