"""What a recipe's ``model`` names: a whole model, a GGUF file, or an adapter with the checkpoint beneath it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cpift.checkpoint.adapter import is_adapter
from cpift.checkpoint.adapter_base import named_base
from cpift.checkpoint.adapter_config import AdapterConfig
from cpift.checkpoint.hub import checkpoint_place, locate
from cpift.checkpoint.reader import open_checkpoint, open_plain
from cpift.checkpoint.stream import Checkpoint
from cpift.recipe.recipe import Recipe


@dataclass(frozen=True)
class GivenModel:
    """The model of a recipe, where it lies.

    Attributes:
        path: a checkpoint's folder, a GGUF file, or the folder of an adapter.
        beneath: of an adapter, the checkpoint that it is applied to.
    """

    path: Path
    beneath: Path | None = None

    @classmethod
    def of(cls, recipe: Recipe, weights: bool = True) -> GivenModel:
        """Find the model; one on the hub is fetched, and so is the base of an adapter.

        Args:
            recipe: the recipe. Its ``base``, where it is given, is what an adapter is applied to.
            weights: fetch the weights? Without them, configuration and tokenizer alone.

        Raises:
            CpiftError: no such model; an adapter that cannot be merged, or whose base is not known.
        """
        path = locate(recipe.model, recipe.revision, recipe.trust_remote_code, weights)
        if not path.is_dir() or not is_adapter(path):
            return cls(path)
        config = AdapterConfig.read(path)
        if recipe.base is not None:
            return cls(path, checkpoint_place(recipe.base, key="base", weights=weights))
        return cls(path, named_base(config, weights))

    @property
    def converted(self) -> bool:
        """Does a run write it as a plain checkpoint, in float32, before all else?"""
        return self.beneath is not None or self.path.suffix == ".gguf"

    @property
    def folder(self) -> Path:
        """Where the configuration and carried regions lie; of an adapter, beside its base."""
        return self.beneath or self.path

    def beside(self, name: str) -> Path:
        """The folder whose file of this name counts: the adapter's where it has one, else the base's."""
        return self.path if (self.path / name).is_file() else self.folder

    def opened(self) -> Checkpoint:
        """Its headers.

        Raises:
            CpiftError: no checkpoint that can be read, or an adapter that belongs to another base.
        """
        return open_plain(self.path) if self.beneath is None else open_checkpoint(self.path, open_plain(self.beneath))


def tuned_from(recipe: Recipe, given: GivenModel) -> Path | None:
    """The checkpoint that the model was fine-tuned from, as far as it is known: of an adapter always.

    Args:
        recipe: the recipe.
        given: its model.
    """
    if given.beneath is not None:
        return given.beneath
    return None if recipe.base is None else checkpoint_place(recipe.base, key="base")
