"""The methods that ``cpift compare`` sets side by side: a new one is a file beside this and a line in the table."""

from __future__ import annotations

from cpift.compare.methods.cpi_ft import (
    CPI_FT,
    INSIDE,
    NO_FREEZE,
    NO_REFINE,
    NO_TRANSPLANT,
    RANDOM_MODEL,
    RANDOM_REGION,
)
from cpift.compare.methods.half import HALF_FINE_TUNING
from cpift.compare.methods.merges import DARE_TIES, SOUP, TASK_ARITHMETIC, TIES
from cpift.compare.methods.method import Method, Role
from cpift.compare.methods.multi_stage import HEURISTIC, RANDOM, REPLAY
from cpift.compare.methods.random_sparse import RANDOM_SPARSE
from cpift.compare.methods.sequential import (
    CPI_FT_SEQUENTIAL,
    OSF,
    SEQUENTIAL,
    SEQUENTIAL_ANCHOR,
    SEQUENTIAL_REPLAY,
    SFA,
)
from cpift.compare.methods.sft import BASE, BIAS_ONLY, MULTI_TASK, SINGLE_TASK
from cpift.table import Table

METHODS = Table(
    "method",
    [
        BASE,
        SINGLE_TASK,
        MULTI_TASK,
        RANDOM,
        HEURISTIC,
        REPLAY,
        CPI_FT,
        RANDOM_REGION,
        RANDOM_MODEL,
        INSIDE,
        NO_FREEZE,
        NO_TRANSPLANT,
        NO_REFINE,
        BIAS_ONLY,
        RANDOM_SPARSE,
        HALF_FINE_TUNING,
        SOUP,
        TASK_ARITHMETIC,
        TIES,
        DARE_TIES,
        SEQUENTIAL,
        SEQUENTIAL_REPLAY,
        SEQUENTIAL_ANCHOR,
        SFA,
        OSF,
        CPI_FT_SEQUENTIAL,
    ],
)
REFERENCE = CPI_FT.name  # what all others are set against, where nothing else is asked for


def method_of(name: str) -> Method | None:
    """The method of a name with or without settings, ``cpi_ft:fuse.space=updates``; None where the table has none."""
    return METHODS.get(name.partition(":")[0])


def is_form_of(name: str, other: str) -> bool:
    """Is a method the same as another, or a form of it: with other settings, an ablation, a variant?

    Args:
        name: a method, with or without settings.
        other: likewise; its settings do not count.
    """
    wanted, seen = other.partition(":")[0], set[str]()
    at: str | None = name.partition(":")[0]
    while at is not None and at not in seen:
        if at == wanted:
            return True
        seen.add(at)
        at = METHODS[at].variant_of if at in METHODS else None
    return False


def has_role(name: str, role: Role) -> bool:
    """Does the table give a method this role?"""
    method = method_of(name)
    return method is not None and method.role is role


def specialist() -> str:
    """Name of the method that trains a model for each task, which shares are taken of."""
    return SINGLE_TASK.name


__all__ = ["METHODS", "REFERENCE", "Method", "Role", "has_role", "is_form_of", "method_of", "specialist"]
