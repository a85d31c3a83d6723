"""What probes take that train an adapter in place of all parameters."""

from __future__ import annotations

from cpift.checkpoint.stream import Checkpoint
from cpift.files.records import AdapterPlan
from cpift.recipe.recipe import Recipe

_TRAIN_BYTES = 16  # a trained parameter in fp32: weight, gradient, and AdamW's two moments


def adapter_plan(recipe: Recipe, base: Checkpoint) -> AdapterPlan | None:
    """Trained parameters of one probe, and its memory without activations; None where probes are whole models.

    Args:
        recipe: the recipe.
        base: its model.
    """
    adapter = recipe.probe.adapter
    if adapter is None:
        return None
    trained = adapter.parameters({name: tensor.shape for name, tensor in base.tensors.items()})
    weights = base.total // 2 if adapter.kind.four_bit else base.total * (2 if recipe.dtype == "bfloat16" else 4)
    return {"parameters": trained, "memory": weights + trained * _TRAIN_BYTES}
