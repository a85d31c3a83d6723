"""A model that is scored in several ways: loaded when it is first needed, and once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from cpift.data.templates import ChatSettings
from cpift.recipe.recipe import Recipe
from cpift.train import accelerator
from cpift.train.malloc import kept_memory
from cpift.train.models import load_model, load_tokenizer
from cpift.typing import Network, Tokenizer


@dataclass(frozen=True)
class Opened:
    """A checkpoint, or an adapter merged into its base, that is scored.

    Attributes:
        path: its folder.
        trust_remote_code: run code that the model's repository carries.
        chat: what the recipe sets of the tokenizer.
        base: the base of an adapter; None: the one that it names.
        attention: transformers' name of how attention is computed; None: its choice.
        device_map: how transformers spreads the layers over several devices; None: one device.
        dtype: ``float32``: not by bf16 autocast, where the device has it.
    """

    path: Path
    trust_remote_code: bool = False
    chat: ChatSettings | None = None
    base: Path | None = None
    attention: str | None = None
    device_map: str | None = None
    dtype: str = "auto"

    @classmethod
    def of(cls, model: str | Path | Opened) -> Opened:
        """A model by its folder, with all settings by default; one that is open stays as it is."""
        return model if isinstance(model, Opened) else cls(Path(model))

    @classmethod
    def by(cls, recipe: Recipe, path: Path, base: Path | None = None) -> Opened:
        """A model as a recipe has it loaded: for its tasks, its guard set and its plan alike.

        Args:
            recipe: the recipe.
            path: the model's folder.
            base: of an adapter; None: the one that it names.
        """
        return cls(
            path,
            recipe.trust_remote_code,
            recipe.chat,
            base,
            recipe.attn_implementation,
            recipe.device_map,
            recipe.evaluate.dtype,
        )

    @cached_property
    def network(self) -> Network:
        """The model on its device, loaded now or before.

        Raises:
            CpiftError: a checkpoint that cannot be loaded.
            OutOfMemory: the model alone is too large.
        """
        network = load_model(self.path, self.trust_remote_code, self.base, self.attention, "float32", self.device_map)
        accelerator.place(network)
        return network

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, loaded now or before."""
        return load_tokenizer(self.path, self.trust_remote_code, self.chat, self.base)

    @property
    def precision(self) -> str:
        """Of its passes: ``fp32``, or ``bf16 autocast``."""
        return accelerator.scoring_precision(self.dtype)

    @contextmanager
    def scoring(self) -> Iterator[Network]:
        """The model, for passes without gradients, in its precision."""
        network = self.network
        with torch.inference_mode(), kept_memory(), accelerator.scoring_autocast(network, self.dtype):
            yield network
