"""The recipe's part ``model``, and what a run leaves of its models."""

from __future__ import annotations

from typing import Literal

from cpift.recipe.part import Part


class ModelPart(Part):
    """``model:`` as a record."""

    path: str
    """A local folder, a hub id, perhaps with @revision, or a GGUF file."""
    revision: str | None = None
    """Branch, tag or commit of a model from the hub."""
    attn_implementation: str | None = None
    """How attention is computed, by transformers' name."""


class Output(Part):
    """What a finished run leaves."""

    dtype: Literal["base", "float32", "bfloat16", "float16"] | None = None
    """Of the final model; base: as most of the base's weights are. By default as it was trained, float32."""
    keep: Literal["all", "final"] = "all"
    """all: every stage's model; final: the final model alone. What a later stage needs then is made again."""
