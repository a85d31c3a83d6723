"""The comparison lab: methods × seeds × budgets on a recipe's tasks, with statistics."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpift.compare.lab import compare
    from cpift.compare.record import FILE

__all__ = ["FILE", "compare"]


def __getattr__(name: str) -> object:
    """The lab, imported when first used: the table of methods needs neither torch nor transformers."""
    if name not in __all__:
        raise AttributeError(f"module 'cpift.compare' has no attribute {name!r}")
    return getattr(import_module("cpift.compare.record" if name == "FILE" else "cpift.compare.lab"), name)
