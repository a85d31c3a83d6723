"""Which stored tensors an optimizer moves: parameters and buffers, by name and, where that leaves a doubt, by class."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path

from cpift.checkpoint.library import optional_library
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
_BUFFER = re.compile("|".join(fnmatch.translate(pattern) for pattern in _BUFFERS))  # one match in place of sixteen
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def is_parameter(name: str, tensor: Tensor | None = None) -> bool:
    """Does an optimizer move this tensor? It is a buffer otherwise; without ``tensor`` the name alone is looked at."""
    if tensor is not None and not tensor.floating:
        return False
    if name.endswith((".attn.bias", ".attention.bias")) and (tensor is None or len(tensor.shape) == 4):
        return False  # GPT-2's and GPT-Neo's causal mask
    return not is_buffer(name)


def buffers_of_class(folder: Path, stored: Mapping[str, Tensor], config: Mapping[str, object]) -> dict[str, bool]:
    """Which names the model's class has as buffers, or does not know, so that it never trains them.

    So are weights that the class ignores, such as DeepSeek-V3's layers for multi-token prediction.

    The class is built, which takes seconds, only where a name leaves a doubt: one that ends in neither ".weight" nor
    ".bias" and is none of the known buffers, or one that is beyond the layers of the configuration. Empty where there
    is no doubt, or no class.

    Args:
        folder: of the checkpoint.
        stored: its tensors by name.
        config: what its ``config.json`` holds.
    """
    doubtful = [n for n, t in stored.items() if is_parameter(n, t) and n.rsplit(".", 1)[-1] not in ("weight", "bias")]
    layers = config.get("num_hidden_layers")
    beyond = any(_is_beyond(name, layers if isinstance(layers, int) else None) for name in stored)
    if not (doubtful or beyond) or not config.get("model_type"):
        return {}
    rehearsal = optional_library("cpift.method.rehearsal")  # above this package, as it needs torch and transformers
    if rehearsal is None:
        return {}
    known: dict[str, bool] = rehearsal.class_buffers(folder, {name: t.shape for name, t in stored.items()}, config)
    return {**dict.fromkeys(doubtful, True), **known} if known else {}


def _is_beyond(name: str, layers: int | None) -> bool:
    """Is this a weight beyond the model's layers: of one with a higher number, or for multi-token prediction?"""
    number = _LAYER.search(name)
    return "mtp" in name.split(".") or (layers is not None and number is not None and int(number[1]) >= layers)


def is_buffer(name: str) -> bool:
    """Is this the name of a known buffer?"""
    return _BUFFER.match(name) is not None
