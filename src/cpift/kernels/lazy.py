"""Compiled loops that are imported when they are first called: numba takes longer to import than most commands run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def compiled(module: str, name: str) -> Callable[..., Any]:
    """A loop by its name.

    Args:
        module: of this package.
        name: of the loop in that module.
    """

    def call(*arguments: object) -> Any:
        return getattr(import_module(f"cpift.kernels.{module}"), name)(*arguments)

    return call
