"""Regions that a method of a comparison draws without a probe: half of each layer, or a share of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpift.checkpoint.layers import kind, layer
from cpift.checkpoint.reader import open_checkpoint
from cpift.method.criteria.choice import Choice
from cpift.method.criteria.random import over_the_model
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe


@dataclass(frozen=True)
class Draw:
    """A way to draw a region of a checkpoint.

    Attributes:
        region: gives it, from the recipe, the checkpoint and a text that seeds it.
        settings: what of the recipe decides about it, apart from seed and checkpoint.
    """

    region: Callable[[Recipe, Path, str], Region]
    settings: Callable[[Recipe], Mapping[str, object]]


def half(shapes: Mapping[str, tuple[int, ...]], seed: str) -> Region:
    """The parameters to freeze, whole: half of the attention matrices, of the MLP's and of the norms of each layer.

    A bias goes with its matrix. Of an odd number, every second layer freezes the larger half. What lies outside the layers
    is trained.

    Args:
        shapes: of all parameters, by name.
        seed: of the draw.
    """
    groups: dict[tuple[int, str], dict[str, list[str]]] = {}
    for name in sorted(shapes):
        number = layer(name)
        if number is not None:
            module = name.removesuffix(".weight").removesuffix(".bias")
            groups.setdefault((number, kind(name)), {}).setdefault(module, []).append(name)
    rng, positions = np.random.default_rng(list(seed.encode())), dict[str, np.ndarray]()
    for (number, _), modules in sorted(groups.items()):
        count = len(modules) // 2 + len(modules) % 2 * (number % 2)
        for module in rng.choice(sorted(modules), count, replace=False):
            for name in modules[str(module)]:
                size = math.prod(shapes[name])
                positions[name] = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
    return Region(positions, sum(map(math.prod, shapes.values())), shapes={name: shapes[name] for name in positions})


def _half_of(recipe: Recipe, checkpoint: Path, name: str) -> Region:
    tensors = open_checkpoint(checkpoint).tensors
    return half({parameter: tensor.shape for parameter, tensor in tensors.items()}, f"{recipe.seed}/{name}")


def _share_of(recipe: Recipe, checkpoint: Path, name: str) -> Region:
    """``region.percent`` of what counts."""
    part = recipe.region
    choice = Choice(
        checkpoint, {name: checkpoint}, str(part.percent), part.include, part.exclude, part.unit, recipe.seed
    )
    return over_the_model(choice)[name].detached()


def _share_settings(recipe: Recipe) -> Mapping[str, object]:
    part = recipe.region
    return {"percent": str(part.percent), "include": part.include, "exclude": part.exclude, "unit": part.unit}


DRAWS: Mapping[str, Draw] = {
    "half": Draw(_half_of, lambda recipe: {}),
    "random": Draw(_share_of, _share_settings),
}
