"""Tied embeddings: two names for one parameter, which counts once, under the input embedding's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cpift.checkpoint.library import library
from cpift.checkpoint.tensor import Tensor
from cpift.errors import CpiftError

# (output embedding, input embedding) by the end of their names. A tied pair counts once, under the input's name.
TIED = [
    ("lm_head.weight", "embed_tokens.weight"),
    ("lm_head.weight", "wte.weight"),
    ("lm_head.weight", "word_embeddings.weight"),
    ("lm_head.weight", "decoder.embed_tokens.weight"),
    ("embed_out.weight", "embed_in.weight"),
    ("output.weight", "tok_embeddings.weight"),
]


def is_output(name: str) -> bool:
    """Is this the name of an output embedding that may be tied?"""
    return any(name == output or name.endswith("." + output) for output, _ in TIED)


def tied_aliases(stored: Mapping[str, Tensor], config: Mapping[str, object], path: Path) -> dict[str, str]:
    """Output embeddings that are stored beside the input embedding that they are tied to, and this one's name."""
    aliases: dict[str, str] = {}
    for name in stored:
        for output, source in TIED:
            if not (name == output or name.endswith("." + output)):
                continue
            partners = [n for n in stored if n == source or n.endswith("." + source)]
            if len(partners) == 1 and stored[partners[0]].shape == stored[name].shape and says_tied(config):
                if not same_elements(stored[name], stored[partners[0]]):
                    raise CpiftError(
                        f"{path}: config.json ties {name} to {partners[0]}, yet the two differ; "
                        "set tie_word_embeddings to false, or save the checkpoint again"
                    )
                aliases[name] = partners[0]
    return aliases


def says_tied(config: Mapping[str, object]) -> bool:
    """Does the configuration, or else its class's default, tie the output embedding to the input embedding?"""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    if "model_type" not in config:
        return False
    # Left out where it is the class's default, and only transformers knows that; asked in this rare case alone.
    known, kind = library("transformers").CONFIG_MAPPING, config["model_type"]
    return bool(kind in known and getattr(known[kind](), "tie_word_embeddings", False))


def same_elements(a: Tensor, b: Tensor) -> bool:
    """Are type, shape and every bit of two tensors the same?"""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    step = 2**22
    places = [(start, min(start + step, a.size)) for start in range(0, a.size, step)]
    return all(a.read(*place).tobytes() == b.read(*place).tobytes() for place in places)
