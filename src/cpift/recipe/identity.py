"""A recipe's values as what decides about results that are kept: keys that came later count only where they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpift.method.criteria import FORMER_NAMES
from cpift.recipe.recipe import Recipe

NEWER: Mapping[str, tuple[str, ...]] = {
    "region": ("include", "unit", "rows"),
    "fuse": ("every",),
    "refine": ("train", "replay", "anchor"),
    "protect": ("every", "ewc"),
    "output": ("probes",),
}
"""Keys that results of earlier versions know nothing of, by part of the recipe."""

_NEWER_KEYS = ("dtype", "device_map", "quantization", "evaluate", "guard")  # of the recipe itself


def identity(recipe: Recipe) -> dict[str, Any]:
    """All values by key, for a hash: the same for a recipe without newer keys as before there were any.

    Args:
        recipe: the recipe.
    """
    values = recipe.model_dump(by_alias=True, mode="json")
    for key in _NEWER_KEYS:
        if getattr(recipe, key) == Recipe.model_fields[key].default:
            del values[key]
    for task in values["tasks"].values():
        if not task["metric_settings"]:
            del task["metric_settings"]
    if values["arrivals"] and values["arrivals"]["osf"] is None:
        del values["arrivals"]["osf"]
    for part, keys in NEWER.items():
        defaults = type(getattr(recipe, part))().model_dump(by_alias=True, mode="json")
        for key in keys:
            if values[part][key] == defaults[key]:
                del values[part][key]
    former = {now: name for name, now in FORMER_NAMES.items()}
    by = values["region"].pop("by")
    values["region"]["select"] = former.get(by, by)
    return values
