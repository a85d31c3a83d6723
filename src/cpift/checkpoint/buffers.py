"""Which stored tensors an optimizer moves: parameters and buffers, by name and, where that leaves a doubt, by class."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpift.checkpoint.tensor import Tensor

# What checkpoints store although no optimizer ever moves it.
_BUFFERS = (
    "*.attn.masked_bias",
    "*.attention.masked_bias",
    "*inv_freq",
    "*position_ids",
    "*token_type_ids",
    "*running_mean",
    "*running_var",
    "*num_batches_tracked",
    "*cos_cached",
    "*sin_cached",
    "*freqs_cis",
    "*.rope.freqs",
    "*.embed_positions.weights",  # sinusoidal
    "*e_score_correction_bias",  # of DeepSeek-V3's router and its like
    "*.expert_bias",
    "*final_logits_bias",
)


def is_parameter(name: str, tensor: Tensor | None = None) -> bool:
    """Does an optimizer move this tensor? It is a buffer otherwise; without ``tensor`` the name alone is looked at."""
    if tensor is not None and not tensor.floating:
        return False
    if name.endswith((".attn.bias", ".attention.bias")) and (tensor is None or len(tensor.shape) == 4):
        return False  # GPT-2's and GPT-Neo's causal mask
    return not is_buffer(name)


def buffers_of_class(folder: Path, stored: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, bool]:
    """Which names the model's class has as buffers, or does not know, so that it never trains them.

    The class is built, which takes seconds, only where a name leaves a doubt: one that ends in neither ".weight" nor
    ".bias" and is none of the known buffers. Empty where there is no doubt, or no class.

    Args:
        folder: of the checkpoint.
        stored: its tensors by name.
        config: what its ``config.json`` holds.
    """
    doubtful = [n for n, t in stored.items() if is_parameter(n, t) and n.rsplit(".", 1)[-1] not in ("weight", "bias")]
    if not doubtful or not config.get("model_type"):
        return {}
    try:
        from cpift.method.rehearsal import class_buffers
    except ImportError:  # torch and transformers are not needed to read checkpoints
        return {}
    known = class_buffers(folder, {name: t.shape for name, t in stored.items()}, config)
    return {**dict.fromkeys(doubtful, True), **known} if known else {}


def is_buffer(name: str) -> bool:
    """Is this the name of a known buffer?"""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _BUFFERS)
