"""What is to be done: methods by name, their variants, budgets and seeds, as jobs in an order that can be worked through."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml

from cpift.compare.methods import METHODS
from cpift.errors import CpiftError
from cpift.recipe.yaml import read_yaml
from cpift.typing import Json

Budget = Literal["paper", "equal_tokens", "incremental"]


@dataclass(frozen=True)
class Job:
    """One method under one budget with one seed; its learning rates are the recipe's times a factor."""

    budget: Budget
    method: str
    seed: int
    factor: float = 1.0

    @property
    def name(self) -> str:
        """The method's name without settings."""
        return self.method.partition(":")[0]

    @property
    def folder(self) -> str:
        """Where it is worked on, below the folder of the seeds."""
        times = "" if self.factor == 1 else f"@{self.factor:.4g}"
        return f"{self.seed}/{self.budget}/{_slug(self.method)}{times}"


def overrides_of(method: str) -> dict[str, Json]:
    """Recipe settings that a method's name stands for. Raises :class:`CpiftError` for a name that means nothing."""
    name, _, settings = method.partition(":")
    found: dict[str, Json] = dict(METHODS.choose(name, "--methods").settings or {})
    for part in filter(None, re.split(r",(?=[a-z_]+\.)", settings)):
        key, sign, value = part.partition("=")
        if not sign:
            raise CpiftError(
                f"--methods {method}: write a variant as {name}:KEY=VALUE, such as cpi_ft:fuse.space=updates"
            )
        try:
            found[key] = read_yaml(value)
        except yaml.YAMLError as error:
            raise CpiftError(f"--methods {method}: the value of {key} is not YAML") from error
    return found


def jobs_of(methods: Sequence[str], seeds: Sequence[int], budgets: Sequence[str]) -> list[Job]:
    """In an order in which what others need comes first."""
    if not methods or not seeds or len(set(seeds)) < len(seeds):
        raise CpiftError("compare: give at least one method and one seed, no seed twice")
    unknown = [b for b in budgets if b not in get_args(Budget)]
    if unknown:
        raise CpiftError(f"--budget: {unknown[0]} is none of {', '.join(get_args(Budget))}")
    for method in methods:
        overrides_of(method)
    found = []
    for seed in seeds:
        for budget in budgets:
            fitting = [m for m in dict.fromkeys(methods) if _fits(m, budget)]
            found += [Job(budget, m, seed) for m in sorted(fitting, key=_comes_later)]  # type: ignore[arg-type]
    if not found:
        raise CpiftError(f"--methods: none of {', '.join(methods)} is run under the budget {', '.join(budgets)}")
    return found


def _fits(method: str, budget: str) -> bool:
    entry = METHODS[method.partition(":")[0]]
    return (entry.arrive if budget == "incremental" else entry.run) is not None


def _comes_later(method: str) -> bool:
    return not METHODS[method.partition(":")[0]].comes_first


def siblings(out: Path, job: Job) -> list[Path]:
    """Run folders of the same seed."""
    return sorted((out / "seeds" / str(job.seed)).glob("*/*"))


def _slug(method: str) -> str:
    """A folder's name; a long one, which no disk takes, is cut and ends in a hash."""
    slug = re.sub(r"[^\w.=,-]", "+", method)
    return slug if len(slug) <= 200 else f"{slug[:180]}+{hashlib.sha256(method.encode()).hexdigest()[:12]}"
