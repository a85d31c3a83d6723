"""Names of parameters: without what wrappers put into them, and matched one to one between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from cpift.errors import CpiftError

T = TypeVar("T")

# Parts of a name that a wrapper adds wherever it stands: torch.compile, FSDP, activation checkpointing, Lightning.
_ANYWHERE = {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"}
# What DistributedDataParallel, DataParallel and DeepSpeed add. A layer may have this name too, so it counts as a
# wrapper only at the start of a name or behind another wrapper.
_OUTERMOST = "module"
_PEFT = ("base_model", "model")  # at the start only


def plain_name(name: str) -> str:
    """The name without wrappers, in any nesting: ``module._orig_mod.model.norm.weight`` is ``model.norm.weight``."""
    parts, wrapped = name.split("."), True
    kept: list[str] = []
    i = 0
    while i < len(parts):
        if parts[i] in _ANYWHERE or (wrapped and parts[i] == _OUTERMOST):
            wrapped = True
        elif not kept and tuple(parts[i : i + 2]) == _PEFT:
            i += 1
        else:
            kept.append(parts[i])
            wrapped = False
        i += 1
    return ".".join(kept) or name


def plain_names(stored: Mapping[str, T], where: object) -> dict[str, T]:
    """``stored`` by plain names.

    Args:
        stored: anything by name.
        where: what holds the names, for the message.

    Raises:
        CpiftError: two names are one without their wrappers.
    """
    origin: dict[str, str] = {}
    for name in stored:
        plain = plain_name(name)
        if plain in origin:
            raise CpiftError(f"{where}: {origin[plain]} and {name} are one parameter, stored twice; remove one of them")
        origin[plain] = name
    return {plain: stored[name] for plain, name in origin.items()}


def match_names(wanted: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """For each wanted name that has one, its partner among ``given``, the base-model prefix added or removed.

    No two wanted names share a partner.
    """
    have = set(given)
    if set(wanted) == have:
        return {name: name for name in wanted}
    best = {name: name for name in wanted if name in have}
    for prefix in sorted({name[: name.index(".") + 1] for name in (*wanted, *given) if "." in name}):
        match = {name: name for name in wanted if name in have}
        taken = set(match.values())
        for name in wanted:
            if name in match:
                continue
            for candidate in (prefix + name, name.removeprefix(prefix)):
                if candidate in have and candidate not in taken:
                    match[name] = candidate
                    taken.add(candidate)
                    break
        if len(match) > len(best):
            best = match
    return best
