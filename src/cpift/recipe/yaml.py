"""YAML as recipes have it, and its dotted keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cpift.errors import CpiftError


def read_yaml(text: str) -> Any:
    """YAML as recipes have it. Raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """YAML with neither tags nor aliases, which a recipe does not need, and duplicate keys refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"aliases are not supported, line {line}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.YAMLError(f"the key {name!r} is not text, line {key.start_mark.line + 1}")
            if name in seen:
                raise yaml.YAMLError(f"the key {name!r} stands twice, line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 takes 1e-4 for text; everyone who writes it means the number, as YAML 1.2 does.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


_RENAMED = {"region.select": "region.by"}  # keys of earlier recipes


def origins(path: str | Path, overrides: Mapping[str, object] | None = None) -> dict[str, str]:
    """Dotted keys that a recipe file which loads, or the overrides, give: "recipe" or "command line"; others are defaults."""
    found = dict.fromkeys(_leaves(read_yaml(Path(path).read_text(encoding="utf-8"))), "recipe")
    for key, value in (overrides or {}).items():
        found |= dict.fromkeys(_leaves(value, key), "command line")
    return {_RENAMED.get(key, key): source for key, source in found.items()}


def _leaves(value: object, where: str = "") -> list[str]:
    """Dotted keys of all that is no table; a bare word for the backbone is where it comes from."""
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{where}.{key}" if where else key)]
    return ["backbone.from" if where == "backbone" and isinstance(value, str) else where]


def set_key(data: dict[str, object], key: str, value: object) -> None:
    """Give a dotted key its value, in place. Raises :class:`CpiftError` where a part of it is no table."""
    key = _RENAMED.get(key, key)
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if isinstance(inner, str) and parent == "backbone":
            inner = data[parent] = {"from": inner}
        if isinstance(inner, list) and parent == "arrivals":
            inner = data[parent] = {"order": inner}
        if not isinstance(inner, dict):
            raise CpiftError(f"--set {key}: {parent} is not a table")
        data = inner
    data[last] = value
    for former, now in _RENAMED.items():
        if now == key:
            data.pop(former.rpartition(".")[2], None)
