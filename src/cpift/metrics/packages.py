"""Packages that only some metrics need: imported when used, and asked for in one line where they are missing."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

from cpift.errors import CpiftError
from cpift.extras import install


def missing(package: str, extra: str) -> str | None:
    """What to do about a package that is not installed; None where it is. Nothing is imported.

    Args:
        package: its name for import, or that of a module of it.
        extra: the extra of cpift that installs it.
    """
    package = package.partition(".")[0]
    if find_spec(package) is not None:
        return None
    return f"needs the package {package}, which is not installed; {install(extra)}"


def load(package: str, extra: str) -> ModuleType:
    """Import a package.

    Raises:
        CpiftError: it is not installed; the line names the extra.
    """
    if (problem := missing(package, extra)) is not None:
        raise CpiftError(f"the metric {problem}")
    return importlib.import_module(package)
