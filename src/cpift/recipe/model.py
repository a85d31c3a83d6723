"""The recipe's part ``model``, and what a run leaves of its models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cpift.recipe.adapter import Adapter
from cpift.recipe.part import Part

Dtype = Literal["float32", "bfloat16"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]


class ModelPart(Part):
    """``model:`` as a record."""

    path: str
    """A local folder, a hub id, perhaps with @revision, an adapter, or a GGUF file."""
    revision: str | None = None
    """Branch, tag or commit of a model from the hub."""
    attn_implementation: str | None = None
    """How attention is computed, by transformers' name."""
    dtype: Dtype = "float32"
    """Of the weights in training."""
    device_map: DeviceMap | None = None
    """How transformers spreads the layers over several devices."""
    quantization: Literal["4bit"] | None = None
    """Of the base beneath a QLoRA probe."""


class Output(Part):
    """What a finished run leaves."""

    dtype: Literal["base", "float32", "bfloat16", "float16"] | None = None
    """Of the final model; base: as most of the base's weights are. By default as it was trained, float32."""
    keep: Literal["all", "final"] = "all"
    """all: every stage's model; final: the final model alone. What a later stage needs then is made again."""
    probes: Literal["weights", "updates"] = "weights"
    """updates: of each probe Δ alone, in bf16: half the disk, and rounded (docs/plan.md)."""


def check_model_keys(
    dtype: Dtype, quantization: str | None, output: Output, probe: Adapter | None, merged: Sequence[str]
) -> None:
    """Check the model's keys against the adapters that are trained.

    Args:
        dtype: of the weights in training.
        quantization: of the base; None: none.
        output: what a run leaves.
        probe: adapter of the probes; None: all parameters are trained.
        merged: parts of the recipe that train an adapter and merge it.

    Raises:
        ValueError: names the key, and what to do.
    """
    if quantization is not None and (probe is None or not probe.kind.four_bit):
        raise ValueError(
            f"quantization: {quantization} weights cannot be trained, and have no Δ; it is for probes by QLoRA: set "
            "probe.adapter: {type: qlora}, or leave it out"
        )
    if output.probes == "updates" and (probe is not None or dtype == "bfloat16"):
        given = "probe.adapter" if probe is not None else "model.dtype: bfloat16"
        raise ValueError(
            f"output.probes: updates saves nothing with {given}, as probes are no fp32 weights; leave it out"
        )
    if dtype == "bfloat16" and merged:
        raise ValueError(
            f"dtype: bfloat16 is not combined with {merged[0]}.adapter, which is merged in float32; leave one of them out"
        )
