"""The public names."""

from __future__ import annotations

import importlib
import inspect

import cpift


def test_the_public_names_are_these_and_can_be_used() -> None:
    """Each is what it says, also after its module was imported."""
    assert set(cpift.__all__) >= {"Recipe", "run", "identify", "Region", "group", "fuse", "freeze", "evaluate", "plan"}
    importlib.import_module("cpift.planning.plan")

    for name in cpift.__all__:
        assert callable(getattr(cpift, name)), name
        assert inspect.getdoc(getattr(cpift, name)), name
