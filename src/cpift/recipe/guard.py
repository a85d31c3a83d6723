"""The recipe's guard set: what a model must not lose while it is fine-tuned, scored beside the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from cpift.errors import did_you_mean
from cpift.metrics import brings_rows
from cpift.recipe.part import Part
from cpift.recipe.task import Columns, MetricName, ShapeName, Task

NEUTRAL, GENERAL = "neutral text", "general questions"
BUILT_IN = (NEUTRAL, GENERAL)
"""Guard sets that come with the package."""


class GuardSet(Part):
    """One set of the guard: a built-in one by its name, a file with a metric, or a task of lm-eval."""

    name: str = Field(min_length=1)
    """What tables call it."""
    eval: str | None = None
    """A file, a folder or a Hugging Face data set id; none for a built-in set and for a task of lm-eval."""
    metric: MetricName | None = None
    """As of a task; ``lm_eval:NAME`` is a task of lm-eval."""
    eval_split: str = "test"
    """Split, where ``eval`` is a data set from the hub."""
    columns: Columns = {}
    """As of a task."""
    shape: ShapeName | None = None
    """As of a task."""
    pattern: str | list[str] | None = None
    """As of a task."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Longest generated answer, in tokens."""
    limit: int | None = Field(default=None, gt=1)
    """Use only this number of rows, from the first on."""

    @model_validator(mode="after")
    def _consistent(self) -> GuardSet:
        if self.name in BUILT_IN:
            if self.model_fields_set - {"name"} and self != GuardSet.model_construct(name=self.name):
                raise ValueError(f"{self.name} is a built-in set and takes no other key; give yours another name")
        elif brings_rows(self.metric):
            if self.eval is not None:
                raise ValueError(f"{self.metric} has rows of its own; leave out eval")
        elif self.eval is None:
            known = did_you_mean(self.name, BUILT_IN)
            raise ValueError(f"{self.name} is none of {', '.join(BUILT_IN)}, and names no file in eval{known}")
        else:
            self.task()
        return self

    @property
    def built_in(self) -> bool:
        """Does it come with the package?"""
        return self.name in BUILT_IN

    @property
    def rows_of_metric(self) -> str | None:
        """The metric, where it has rows of its own: a task of lm-eval."""
        return self.metric if brings_rows(self.metric) else None

    def task(self) -> Task:
        """The same as a task, whose evaluation rows are those of the set."""
        given = ("metric", "pattern", "max_new_tokens", "columns", "shape", "eval_split")
        return Task(train=str(self.eval), eval=str(self.eval), **{key: getattr(self, key) for key in given})


def _listed(value: Any) -> Any:
    """``none`` as an empty list, a name as a set."""
    if value == "none":
        return []
    if not isinstance(value, list):
        raise ValueError("is none, or a list of sets: their names, or records with name, eval and metric")
    return [_record(one) if isinstance(one, str) else _named(one) for one in value]


def _record(name: str) -> dict[str, str]:
    return {"name": name, "metric": name} if brings_rows(name) else {"name": name}


def _named(value: Any) -> Any:
    """A record without a name has that of its file, or of its task of lm-eval."""
    if not isinstance(value, dict) or "name" in value:
        return value
    if isinstance(value.get("eval"), str):
        return {"name": Path(value["eval"]).name.partition(".")[0], **value}
    metric = value.get("metric")
    return {"name": metric, **value} if isinstance(metric, str) and brings_rows(metric) else value


GuardSets = Annotated[list[GuardSet], BeforeValidator(_listed)]
DEFAULT = [GuardSet(name=name) for name in BUILT_IN]


def check_guard(guard: Sequence[GuardSet], tasks: Sequence[str]) -> None:
    """Refuse names that tables could not tell apart.

    Args:
        guard: the sets of a recipe.
        tasks: names of its tasks.

    Raises:
        ValueError: two sets have one name, or a set has the name of a task.
    """
    names = [entry.name for entry in guard]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"guard: {name!r} is listed twice; give one of them another name")
        if name in tasks:
            raise ValueError(f"tasks: {name!r} is the name of a guard set, too; name the task otherwise")
