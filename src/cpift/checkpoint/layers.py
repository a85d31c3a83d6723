"""Names of parameters to layers, modules and kinds of modules."""

from __future__ import annotations

import re

EMBEDDING, ATTENTION, MLP, NORM, OTHER = "embedding", "attention", "MLP", "norm", "other"
KINDS = (EMBEDDING, ATTENTION, MLP, NORM, OTHER)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_PARTS = (
    (NORM, ("norm", "ln_")),
    (EMBEDDING, ("embed", "wte", "wpe", "lm_head")),
    (ATTENTION, ("attn", "attention")),
    (MLP, ("mlp", "feed_forward", "ffn", "experts")),
)


def layer(name: str) -> int | None:
    """Number of the layer, None outside the layers."""
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def module(name: str) -> str:
    """Which part of its layer a parameter is: q_proj, down_proj, input_layernorm."""
    parts = [p for p in name.split(".") if p not in ("weight", "bias") and not p.isdigit()]
    return parts[-1] if parts else name


def kind(name: str) -> str:
    """One of ``KINDS``."""
    lowered = name.lower()
    return next((k for k, fragments in _PARTS if any(fragment in lowered for fragment in fragments)), OTHER)
