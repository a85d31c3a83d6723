"""Core Parameter Isolation Fine-Tuning (arXiv:2508.21741). The public names; each is imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpift.extras import load

if TYPE_CHECKING:
    from cpift.errors import CpiftError
    from cpift.evaluation.recipe import evaluate_recipe as evaluate
    from cpift.method.compare_updates import compare_updates as diff
    from cpift.method.freeze import freeze
    from cpift.method.fuse import fuse
    from cpift.method.group import group
    from cpift.method.identify import identify
    from cpift.method.region import Region
    from cpift.planning.plan import plan
    from cpift.recipe.recipe import Recipe
    from cpift.runs.pipeline import run
    from cpift.train.freeze_callback import FreezeCallback

__version__ = "0.1.0"
__all__ = [
    "CpiftError",
    "FreezeCallback",
    "Recipe",
    "Region",
    "diff",
    "evaluate",
    "freeze",
    "fuse",
    "group",
    "identify",
    "plan",
    "run",
]

# torch and transformers take seconds to import; `cpift --help` needs neither. Without the extra `train` there are no
# transformers: freeze, Region, identify, group, fuse and diff do without.
_PLACES = {
    "CpiftError": ("errors", "CpiftError"),
    "FreezeCallback": ("train.freeze_callback", "FreezeCallback"),
    "Recipe": ("recipe.recipe", "Recipe"),
    "Region": ("method.region", "Region"),
    "diff": ("method.compare_updates", "compare_updates"),
    "evaluate": ("evaluation.recipe", "evaluate_recipe"),
    "freeze": ("method.freeze", "freeze"),
    "fuse": ("method.fuse", "fuse"),
    "group": ("method.group", "group"),
    "identify": ("method.identify", "identify"),
    "plan": ("planning.plan", "plan"),
    "run": ("runs.pipeline", "run"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'cpift' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(load(f"cpift.{module}"), attribute)
    globals()[name] = value
    return value
