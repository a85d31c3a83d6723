"""Compiled loops that are imported when they are first called: a command that has no need of them starts without."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def compiled(name: str) -> Callable[..., Any]:
    """A loop by its name in :data:`cpift.kernels.native.LOOPS`."""

    def call(*arguments: object) -> Any:
        return import_module("cpift.kernels.native").loop(name)(*arguments)

    return call
