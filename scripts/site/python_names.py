"""The reference of the Python names: what ``cpift`` exports, by mkdocstrings."""

from __future__ import annotations

import inspect

import cpift
from cpift.recipe.recipe import Recipe

_INTRO = """# Python

The names of `cpift`. Each is imported when it is first used, so that `import cpift` takes no time.
"""


def page() -> str:
    """One section a name."""
    return "\n\n".join([_INTRO, *(_section(name) for name in sorted(cpift.__all__, key=str.lower))]) + "\n"


def _section(name: str) -> str:
    """Of the recipe only the methods: its keys have a page of their own. Nothing else is imported: that takes long."""
    if name != Recipe.__name__:
        return f"::: cpift.{name}"
    kinds = (staticmethod, classmethod, property)
    methods = [
        key
        for key, member in vars(Recipe).items()
        if not key.startswith("_") and (isinstance(member, kinds) or inspect.isfunction(member))
    ]
    return f"::: cpift.{name}\n    options:\n      members: [{', '.join(methods)}]\n\nIts keys: [Recipe](recipe.md)."
