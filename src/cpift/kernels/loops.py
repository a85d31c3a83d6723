"""Which loops a selection runs on: compiled ones, or the same in numpy where there is little to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module

from cpift.kernels import plain

FEW = 2**24  # numpy looks at as many updates in half a second; to compile takes ten, once


@dataclass(frozen=True)
class Loops:
    """The loops of identify and diff."""

    read_into: Callable[..., int]
    scan: Callable[..., None]
    take_in: Callable[..., tuple[int, int]]
    keep_best: Callable[..., int]
    count_keys: Callable[..., None]
    unpack_best: Callable[..., None]
    count_unchanged_rows: Callable[..., int]
    count_common: Callable[..., tuple[int, int]]
    add_update_gram: Callable[..., None]


def loops_for(updates: int) -> Loops:
    """The loops for a number of updates, of all models together."""
    if updates <= FEW:
        return Loops(
            plain.read_into,
            plain.scan,
            plain.take_in,
            plain.keep_best,
            plain.count_keys,
            plain.unpack_best,
            plain.count_unchanged_rows,
            plain.count_common,
            plain.add_update_gram,
        )
    loop = import_module("cpift.kernels.native").loop
    return Loops(**{field.name: loop(field.name) for field in fields(Loops)})
