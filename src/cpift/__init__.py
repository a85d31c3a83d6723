"""Core Parameter Isolation Fine-Tuning (arXiv:2508.21741). The public names; each is imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpift.errors import CpiftError
    from cpift.freezing import freeze
    from cpift.fusion import fuse
    from cpift.grouping import group
    from cpift.pipeline import run
    from cpift.planning import plan
    from cpift.recipe import Recipe
    from cpift.region import Region
    from cpift.scoring import evaluate_recipe as evaluate
    from cpift.selection import identify
    from cpift.training import FreezeCallback

__version__ = "0.1.0"
__all__ = [
    "CpiftError",
    "FreezeCallback",
    "Recipe",
    "Region",
    "evaluate",
    "freeze",
    "fuse",
    "group",
    "identify",
    "plan",
    "run",
]

# torch and transformers take seconds to import; `cpift --help` needs neither.
_PLACES = {
    "CpiftError": ("errors", "CpiftError"),
    "FreezeCallback": ("training", "FreezeCallback"),
    "Recipe": ("recipe", "Recipe"),
    "Region": ("region", "Region"),
    "evaluate": ("scoring", "evaluate_recipe"),
    "freeze": ("freezing", "freeze"),
    "fuse": ("fusion", "fuse"),
    "group": ("grouping", "group"),
    "identify": ("selection", "identify"),
    "plan": ("planning", "plan"),
    "run": ("pipeline", "run"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'cpift' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(import_module(f"cpift.{module}"), attribute)
    globals()[name] = value
    return value
