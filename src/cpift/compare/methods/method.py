"""What a method of ``cpift compare`` is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from cpift.metrics.score import Scores

if TYPE_CHECKING:
    from cpift.compare.workbench import Work


@dataclass(frozen=True)
class Arrival:
    """The model after a task has arrived.

    Attributes:
        task: the task that arrived.
        tokens: training tokens of this arrival.
        scores: on all tasks, those to come as well.
    """

    task: str
    tokens: int
    scores: Scores


Run = Callable[["Work"], Scores]
Arrive = Callable[["Work"], list[Arrival]]


class Budgeting(Enum):
    """How a method is brought to as many training tokens as CPI-FT sees."""

    NONE = "it trains nothing"
    OWN = "it trains for the tokens that its workbench has"
    PROBES = "its probes are lengthened"
    PIPELINE = "its probes and its backbone are lengthened; the refine stage stays"


class Role(Enum):
    """What a method is for, in a comparison."""

    FLOOR = "the model before any training"
    SPECIALIST = "a model for each task"
    CONTENDER = "one model for all tasks"


@dataclass(frozen=True)
class Method:
    """One method. It has ``run``, ``arrive`` or both.

    Attributes:
        name: what ``--methods`` calls it.
        summary: one line for help and docs.
        trains: what it trains, for people.
        source: where it comes from: a paper, or the recipe keys that it sets.
        run: trains and scores with all tasks at hand, under the budgets ``paper`` and ``equal_tokens``.
        arrive: the same where tasks arrive one after the other, under ``incremental``.
        settings: recipe keys that it sets.
        variant_of: the method that this is another form of.
        without: as an ablation of that, what is taken away: "without freezing".
        role: what it is for.
        budgeting: how its tokens are made equal to those of CPI-FT.
        refines: it ends with a refine stage.
        comes_first: it is run ahead of the others of a seed, which take over its stages.
        serves_others: others take over its stages, so that its weights stay until the seed is done.
        retrains: where tasks arrive, it trains on all rows again, at more than the others' tokens: an upper bound.
        merges: it needs mergekit.
        needs_osf: it needs PEFT's OSF.
    """

    name: str
    summary: str
    trains: str
    source: str
    run: Run | None = None
    arrive: Arrive | None = None
    settings: Mapping[str, bool | str | float] | None = None
    variant_of: str | None = None
    without: str = ""
    role: Role = Role.CONTENDER
    budgeting: Budgeting = Budgeting.OWN
    refines: bool = True
    comes_first: bool = False
    serves_others: bool = False
    retrains: bool = False
    merges: bool = False
    needs_osf: bool = False
