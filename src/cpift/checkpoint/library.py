"""Libraries that reading checkpoints does without: imported when first needed, as they take seconds, or left out.

``import cpift`` and ``cpift identify`` work with numpy and safetensors alone; torch and transformers are asked only where a
checkpoint's files leave something open.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeAlias

Untyped: TypeAlias = Any
"""What another library gives, whose classes are not known to the type checker: a module, a model, a tensor."""


def library(name: str) -> Untyped:
    """A module by its name. Raises ImportError where it is not installed."""
    return import_module(name)


def optional_library(name: str) -> Untyped | None:
    """A module by its name; None where it, or what it imports, is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None
