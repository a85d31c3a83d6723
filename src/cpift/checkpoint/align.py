"""Two checkpoints of one model: the tensors of one under the names of the other."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import replace

from cpift.checkpoint.names import match_names
from cpift.checkpoint.stream import Checkpoint
from cpift.errors import CpiftError


def align(base: Checkpoint, other: Checkpoint, larger: Callable[[str], bool] = lambda name: False) -> Checkpoint:
    """``other`` with its tensors under the names of ``base``, the base-model prefix added or removed.

    Args:
        base: gives the names.
        other: a checkpoint of the same model.
        larger: may the parameter of this name have more or fewer rows than the base's?

    Raises:
        CpiftError: lists what differs: a tensor missing or too many, or another shape.
    """
    renamed = match_names(list(base.tensors), list(other.tensors))
    missing = [n for n in base.tensors if n not in renamed]
    surplus = sorted(set(other.tensors) - set(renamed.values()))
    if missing or surplus:
        lines = [f"lacks {n}" for n in missing[:3]] + [f"has {n} too many" for n in surplus[:3]]
        more = len(missing) + len(surplus) - len(lines)
        raise CpiftError(
            f"{other.path}: not a checkpoint of {base.path}: {', '.join(lines)}"
            + (f", and {more} more" if more else "")
        )
    for name, theirs in renamed.items():
        if base.tensors[name].shape != other.tensors[theirs].shape:
            if larger(name) and base.tensors[name].shape[1:] == other.tensors[theirs].shape[1:]:
                continue
            expected, shape = base.tensors[name].shape, other.tensors[theirs].shape
            kind = ""
            if "embed" in name or "wte" in name or "lm_head" in name:
                kind = " (vocabularies differ"
                kind += "; --vocabulary union fuses the rows that both have)" if shape[0] > expected[0] else ")"
            raise CpiftError(f"{other.path}: {theirs} has shape {list(shape)}, the base has {list(expected)}{kind}")
    tensors = {name: other.tensors[renamed[name]] for name in base.tensors}
    ours = {theirs: name for name, theirs in renamed.items()}
    added, removed = _prefixes(renamed)

    def renamed_too(name: str) -> str:
        return added + name.removeprefix(removed) if name.startswith(removed) else name

    others = {renamed_too(name): tensor for name, tensor in other.others.items()}
    aliases = {renamed_too(name): ours[source] for name, source in other.aliases.items()}
    return replace(other, tensors=tensors, others=others, aliases=aliases)


def match_tensors(base: Checkpoint, other: Checkpoint) -> dict[str, str]:
    """Parameter of ``other`` to the base's of the same meaning, where it has one."""
    return {theirs: ours for ours, theirs in match_names(list(base.tensors), list(other.tensors)).items()}


def _prefixes(renamed: dict[str, str]) -> tuple[str, str]:
    """What to add to, and what to take from the start of the other's names to have the base's."""
    for ours, theirs in renamed.items():
        if ours != theirs:
            longer = ours.endswith(theirs)
            return (ours.removesuffix(theirs), "") if longer else ("", theirs.removesuffix(ours))
    return "", ""


def excluded(names: Iterable[str], patterns: Iterable[str], key: str = "exclude") -> set[str]:
    """The names that match one of the patterns.

    Args:
        names: of parameters.
        patterns: shell-style.
        key: where they were given, for the message.

    Raises:
        CpiftError: a pattern matches none.
    """
    names, matching = list(names), set()
    for pattern in patterns:
        hit = set(fnmatch.filter(names, pattern))
        if not hit:
            raise CpiftError(f"{key}: {pattern!r} matches no parameter; names look like {names[0]}")
        matching |= hit
    return matching
