"""Quantised checkpoints: recognised by their configuration or by their packed tensors, and refused.

Their integers are codes. A difference or a mean of codes means nothing, so nothing here can read them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path

from cpift.checkpoint.safetensors import StoredTensor
from cpift.errors import CpiftError

_REMEDY = "take the unquantised checkpoint, or write it de-quantised first (transformers: model.dequantize())"
# What the formats call their packed weights, scales and tables: GPTQ, AWQ, bitsandbytes, compressed-tensors, mxfp4, …
_PACKED = (
    "*.qweight",
    "*.qzeros",
    "*.g_idx",
    "*.weight_packed",
    "*.weight_shape",
    "*.SCB",
    "*.weight_format",
    "*.absmax",
    "*.quant_map",
    "*.nested_absmax",
    "*.nested_quant_map",
    "*.quant_state.*",
    "*_blocks",
    "*.W_q",
    "*.codes",
    "*.codebooks",
    "*.weight_zero_point",
    "*.weight_scale",
    "*.weight_scale_inv",
    "*.input_scale",
)
_CODES = {"U8", "I8", "U16", "I16", "U32", "I32", "U64"}  # types that codes are packed into
# Integers that models do keep beside their weights.
_BUFFERS = (
    "*position_ids",
    "*token_type_ids",
    "*num_batches_tracked",
    "*relative_position_index",
    "*_index",
    "*.attn.bias",
    "*.attention.bias",
    "*_mask",
)


def refuse_quantized_config(config: Mapping[str, object], file: Path) -> None:
    """Raise :class:`CpiftError` where the configuration says that the weights are quantised."""
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            stated = part.get(key)
            if stated:
                method = stated.get("quant_method") if isinstance(stated, dict) else None
                raise CpiftError(
                    f"{file}: {key} says that the weights are quantised ({method or 'method unknown'}); {_REMEDY}. "
                    f"Where they are plain numbers already, take {key} out of the file"
                )


def refuse_packed(stored: Mapping[str, StoredTensor], where: Path) -> None:
    """Raise :class:`CpiftError` that names a tensor of codes among the weights."""
    packed = [name for name, tensor in stored.items() if _is_packed(name, tensor)]
    if packed:
        first = packed[0]
        raise CpiftError(
            f"{where}: {first} is of type {stored[first].dtype}, as {len(packed)} tensors of a quantised checkpoint "
            f"are; {_REMEDY}"
        )


def _is_packed(name: str, tensor: StoredTensor) -> bool:
    if tensor.floating:
        return False
    if any(fnmatch.fnmatchcase("." + name, pattern) for pattern in _PACKED):
        return True
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _BUFFERS):
        return False
    last = name.rpartition(".")[2]
    return last.startswith(("weight", "bias")) or (tensor.dtype in _CODES and len(tensor.shape) > 1)
