"""``comparison.json``: what is done, gathered with its statistics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import cast

from cpift.compare.jobs import Job
from cpift.compare.methods import specialist
from cpift.compare.methods.method import Arrival
from cpift.compare.statistics import adjusted, difference, forgetting, summary
from cpift.files import manifest
from cpift.metrics.comparison import (
    ArrivalEntry,
    Compared,
    ComparisonRecord,
    Forgetting,
    MethodDifference,
    MethodSummary,
    RecipeValues,
    Result,
    Results,
    TaskEntry,
    Trials,
)
from cpift.recipe.identity import identity
from cpift.recipe.recipe import Recipe
from cpift.runs.usage import versions

FORMAT = "cpift.comparison/1"
FILE = "comparison.json"
Key = tuple[str, ...]


class Record:
    """Gathers the results of jobs; statistics are kept between calls, as they take long.

    Args:
        recipe: of the comparison.
        out: its folder.
        jobs: all that are asked for.
        reference: the method that all others are set against.
        tuning: how learning rates were tuned; empty: they were not.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        jobs: Sequence[Job],
        reference: str,
        tuning: Mapping[str, Trials] = MappingProxyType({}),
    ) -> None:
        self._tuning = tuning
        self._recipe, self._out, self._jobs, self._reference = recipe, out, jobs, reference
        self._summaries: dict[Key, MethodSummary] = {}
        self._differences: dict[Key, Compared] = {}
        self._forgetting: dict[Key, Forgetting] = {}

    def write(self) -> ComparisonRecord:
        """Write what is done by now into ``comparison.json``, and return it."""
        budgets: dict[str, dict[str, Results]] = {}
        missing = 0
        for job in self._jobs:
            result = read_result(self._recipe, self._out, job)
            missing += result is None
            if result is not None:
                budgets.setdefault(job.budget, {}).setdefault(job.method, {})[str(job.seed)] = result
        tasks = _tasks(self._recipe, budgets)
        record: ComparisonRecord = {
            "format": FORMAT,
            "state": "running" if missing else "done",
            "recipe": cast(RecipeValues, self._recipe.model_dump(by_alias=True, mode="json")),
            "versions": versions(),
            "tasks": tasks,
            "seeds": sorted({job.seed for job in self._jobs}),
            "reference": self._reference,
            "budgets": budgets,
            "summary": {
                budget: {m: self._summary(budget, m, methods, tasks) for m in methods}
                for budget, methods in budgets.items()
            },
            "differences": {
                budget: adjusted(
                    [
                        self._difference(budget, m, methods, tasks)
                        for m in methods
                        if m != self._reference and self._reference in methods
                    ]
                )
                for budget, methods in budgets.items()
            },
            "forgetting": {m: self._forgotten(m, r, tasks) for m, r in budgets.get("incremental", {}).items()},
        }
        if self._tuning:
            record["tuning"] = dict(self._tuning)
        manifest.write_whole(self._out / FILE, json.dumps(record))
        return record

    def _summary(
        self, budget: str, method: str, methods: Mapping[str, Results], tasks: Mapping[str, TaskEntry]
    ) -> MethodSummary:
        results, special = methods[method], methods.get(specialist())
        key = (budget, method, *tasks, "", *results, "", *(special or ()))  # results of these seeds do not change
        if key not in self._summaries:
            self._summaries[key] = summary(results, tasks, special)
        return self._summaries[key]

    def _difference(
        self, budget: str, method: str, methods: Mapping[str, Results], tasks: Mapping[str, TaskEntry]
    ) -> MethodDifference:
        results, reference = methods[method], methods[self._reference]
        key = (budget, method, *tasks, "", *results, "", *reference)
        if key not in self._differences:
            self._differences[key] = difference(results, reference, tasks)
        return cast(MethodDifference, {"method": method, "against": self._reference, **self._differences[key]})

    def _forgotten(self, method: str, results: Results, tasks: Mapping[str, TaskEntry]) -> Forgetting:
        key = (method, *tasks, "", *results)
        if key not in self._forgetting:
            self._forgetting[key] = forgetting(results, tasks)
        return self._forgetting[key]


def _tasks(recipe: Recipe, budgets: Mapping[str, Mapping[str, Results]]) -> dict[str, TaskEntry]:
    """Tasks that some method has been scored on, in the recipe's order."""
    tasks: dict[str, TaskEntry] = {}
    for methods in budgets.values():
        for results in methods.values():
            for result in results.values():
                for task, score in result["scores"].items():
                    tasks.setdefault(task, {"metric": score["metric"], "rows": len(score["items"])})
    return {task: tasks[task] for task in recipe.tasks if task in tasks}


def arrival_entry(arrival: Arrival) -> ArrivalEntry:
    """An arrival as the file has it: scores and outcomes, without what does not change with it."""
    return {
        "task": arrival.task,
        "tokens": arrival.tokens,
        "scores": {task: score["score"] for task, score in arrival.scores.items()},
        "items": {task: score["items"] for task, score in arrival.scores.items()},
    }


def key_of(recipe: Recipe, job: Job) -> str:
    """Stands for what a job's result is made of."""
    parts: list[object] = [identity(recipe), job.budget, job.method, job.seed]
    if job.factor != 1:
        parts.append(job.factor)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def write_result(out: Path, job: Job, result: Result) -> None:
    """Write the result of a job."""
    file = _file(out, job)
    file.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_whole(file, json.dumps(result))


def read_result(recipe: Recipe, out: Path, job: Job) -> Result | None:
    """The result of a job; None where it is not made, or was made from another recipe."""
    try:
        result = cast(Result, json.loads(_file(out, job).read_text()))
    except (OSError, ValueError):
        return None
    return result if result.get("key") == key_of(recipe, job) else None


def _file(out: Path, job: Job) -> Path:
    return out / "results" / f"{job.folder}.json"
