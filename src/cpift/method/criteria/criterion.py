"""What a criterion of core positions is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpift.method.criteria.choice import Choice
    from cpift.method.region import Region

    Chooser = Callable[[Choice], dict[str, Region]]


class Needs(Enum):
    """What a criterion reads."""

    UPDATES = "the base and the task's probe"
    ALL_UPDATES = "the base and the probes of all tasks"
    ROWS = "the task's probe and training rows"


@dataclass(frozen=True)
class Criterion:
    """An entry of the table of criteria.

    Attributes:
        name: as ``region.by`` has it.
        summary: one phrase for help, recipe and docs.
        label: what a model card says of the core positions: "the 1 % of parameters {label}".
        chooser: ``package.module:function`` that gives the region of each task of a :class:`Choice`, or the function
            itself. A name is imported when it is called: a recipe is checked without the kernels.
        reference: where it comes from.
        needs: what it reads.
        seeded: it draws, so that the recipe's seed decides about the region.
    """

    name: str
    summary: str
    label: str
    chooser: str | Chooser
    reference: str = ""
    needs: Needs = Needs.UPDATES
    seeded: bool = False

    def choose(self, choice: Choice) -> dict[str, Region]:
        """The region of each task of ``choice.tuned``."""
        chooser = self.chooser
        if isinstance(chooser, str):
            module, _, function = chooser.partition(":")
            named: Chooser = getattr(import_module(module), function)
            return named(choice)
        return chooser(choice)
