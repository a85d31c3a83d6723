"""The reference of the recipe, from the pydantic models that check it."""

from __future__ import annotations

import json
import types
import typing
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from text import plain, table

from cpift.recipe.recipe import Recipe
from cpift.recipe.template import TABLES

_INTRO = """# Recipe

Every key with its default, made from the code of this version. A key that is not listed here is refused, and the
error names the nearest one. `cpift init` writes a recipe with the common keys and a comment at each.

On the command line a key is set by its dotted name: `cpift run recipe.yaml --set probe.steps=50`.
"""


def page() -> str:
    """A section for the recipe itself and for each part of it, then the names of the tables."""
    parts = [_INTRO, "## The recipe itself", _keys(Recipe, "")]
    for prefix, model in _parts(Recipe, ""):
        parts += [f"## {prefix}", plain((model.__doc__ or "").strip()), _keys(model, prefix)]
    parts.append("## Names that a key may take")
    for name, entries in TABLES.items():
        rows = [[f"`{entry.name}`", plain(entry.summary)] for entry in entries.values()]
        parts += [f"### {name.capitalize()}", table(["name", "what it is"], rows)]
    return "\n\n".join(parts) + "\n"


def _models(annotation: Any) -> list[tuple[type[BaseModel], str]]:
    """Parts of a recipe within an annotation, and how their keys are reached."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, "")]
    inside = [found for inner in get_args(annotation) for found in _models(inner)]
    container = {dict: ".NAME", list: "[]"}.get(get_origin(annotation), "")
    return [(model, container + way) for model, way in inside]


def _parts(model: type[BaseModel], prefix: str) -> list[tuple[str, type[BaseModel]]]:
    """Every part below a model, by its dotted key."""
    found = []
    for name, field in model.model_fields.items():
        for part, way in _models(field.annotation):
            key = f"{prefix}{'.' if prefix else ''}{field.alias or name}{way}"
            found += [(key, part), *_parts(part, key)]
    return found


def _keys(model: type[BaseModel], prefix: str) -> str:
    rows = []
    for name, field in model.model_fields.items():
        inner = [part for part, _ in _models(field.annotation)]
        said = plain(field.description or (inner[0].__doc__ or "" if inner else ""))
        below = " Keys below." if inner else ""
        rows.append([f"`{field.alias or name}`", _type(field), _default(field, bool(inner)), said + below])
    return table(["key", "values", "default", "meaning"], rows)


def _type(field: FieldInfo) -> str:
    return " or ".join(dict.fromkeys(_words(field.annotation)))


def _words(annotation: Any) -> list[str]:
    """What a value may be, in words of YAML."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is typing.Literal:
        return [f"`{value}`" for value in inside]
    if origin is typing.Annotated:
        return _words(inside[0])
    if origin in (typing.Union, types.UnionType):
        return [word for one in inside for word in _words(one) if one is not type(None)]
    if origin is list:
        return ["list of " + " or ".join(dict.fromkeys(_words(inside[0]))).replace("list of ", "lists of ")]
    if origin is dict or annotation is dict:
        return ["record"]
    simple = {str: "text", int: "number", float: "number", bool: "`true`, `false`"}
    return [simple.get(annotation, "record")]


def _default(field: FieldInfo, part: bool) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if (part and not isinstance(value, (list, str))) or value in ({}, [], None):
        return ""
    if isinstance(value, list):
        value = [getattr(one, "name", one) for one in value]
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
