"""Where the backbone comes from: a new source is an entry of this table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cpift.table import Table

Groups = list[list[str]]


def _none(groups: Groups, tasks: list[str]) -> Groups:
    return []


@dataclass(frozen=True)
class BackboneSource:
    """A source of the backbone.

    Attributes:
        name: what ``backbone.from`` calls it.
        summary: one phrase for help, recipe, docs and reports.
        trained: a backbone is trained; otherwise it is the base.
        stages: the tasks of each stage, from the groups in their order and all tasks in the recipe's order.
        mixes: all tasks are trained on together.
    """

    name: str
    summary: str
    trained: bool = True
    stages: Callable[[Groups, list[str]], Groups] = _none
    mixes: bool = False


BACKBONES = Table(
    "backbone source",
    [
        BackboneSource("multi_stage", "SFT on one group of tasks after the other", stages=lambda groups, tasks: groups),
        BackboneSource("pretrained", "the base model, untrained", trained=False),
        BackboneSource("multi_task", "SFT on all tasks at once", stages=lambda groups, tasks: [tasks], mixes=True),
    ],
)
