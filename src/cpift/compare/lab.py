"""``compare()``: methods × seeds × budgets, side by side on a recipe's tasks; what is done is not done again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, cast

from cpift.compare.budget import TOLERANCE, equal_tokens
from cpift.compare.jobs import Budget, Job, jobs_of, overrides_of, siblings
from cpift.compare.merging import mergekit
from cpift.compare.methods import METHODS, REFERENCE, specialist
from cpift.compare.methods.method import Arrival, Budgeting
from cpift.compare.statistics import difference, forgetting, summary
from cpift.compare.workbench import Work
from cpift.console.reporter import Reporter
from cpift.distributed import engine as engines
from cpift.distributed import ranks
from cpift.distributed.engine import Engine
from cpift.errors import CpiftError
from cpift.files import manifest
from cpift.files.layout import RunLayout
from cpift.files.lock import alone
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import check, report
from cpift.runs.usage import versions

FORMAT = "cpift.comparison/1"
FILE = "comparison.json"


def compare(
    recipe: Recipe,
    out: Path,
    methods: Sequence[str],
    seeds: Sequence[int] = (0,),
    budgets: Sequence[Budget] = ("equal_tokens",),
    *,
    reference: str = REFERENCE,
    engine: Engine | None = None,
    keep_models: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train and score the methods, each with each seed; called again, it goes on.

    Args:
        methods: names; a variant of the method is written ``cpi_ft:fuse.space=updates,refine.data=mixed``.
        budgets: "paper", each method as the paper runs it; "equal_tokens", each sees as many training tokens as CPI-FT
            does in all; "incremental", the tasks arrive one after the other.
        reference: the method that all others are set against.
        engine: where seeds are worked on side by side (:func:`cpift.distributed.engine.make_engine`); None: one by one, here.
        keep_models: keep the weights of what has been scored.

    Returns:
        What ``comparison.json`` in ``out`` holds: every item's outcome, summaries, differences with intervals.

    Raises:
        CpiftError: an unknown method or budget, bad input, ``out`` in use.
    """
    reporter = reporter or Reporter()
    wanted = jobs_of(methods, seeds, budgets)
    if ranks.size() > 1:
        raise CpiftError("cpift compare is one process; start it without torchrun or accelerate launch")
    if any(METHODS[job.name].merges for job in wanted):
        mergekit()
    changed = {json.dumps(found, sort_keys=True): found for found in (overrides_of(job.method) for job in wanted)}
    if any(recipe.changed(overrides).probe.adapter is not None for overrides in changed.values()):
        raise CpiftError(
            "probe.adapter: cpift compare sets methods that train all parameters side by side; leave it out"
        )
    for overrides in changed.values():  # most methods change nothing, and the base is read through for each
        check(recipe.changed(overrides), out / "check")
    if out.is_dir() and any(out.iterdir()) and not (out / FILE).is_file() and not RunLayout(out).recipe.is_file():
        raise CpiftError(f"{out}: is not empty and holds no comparison; choose another --out")
    known: dict[Any, Any] = {}

    def write_now() -> dict[str, Any]:
        return write(recipe, out, wanted, reference, known)

    with engine or nullcontext(), alone(out):
        manifest.write_whole(RunLayout(out).recipe, recipe.dump())
        by_seed = {seed: [job for job in wanted if job.seed == seed] for seed in seeds}
        if engine and (len(seeds) > 1 or engine.elsewhere):
            ways = [_way(recipe, out.absolute(), todo, keep_models) for todo in by_seed.values()]
            with closing(engine.run(ways, reporter.message)) as done:
                for _, warnings in done:
                    for text in cast("list[str]", warnings):
                        reporter.warning(text)
                    write_now()
        else:
            for todo in by_seed.values():
                _seed(recipe, out, todo, keep_models, reporter, write_now)
        whole = write_now()
        report(out, reporter)
        return whole


def _way(recipe: Recipe, out: Path, jobs: Sequence[Job], keep: bool) -> engines.Job:
    """One seed as a job. Its methods stay together, as each takes over what those before it have trained."""
    seed = jobs[0].seed
    what = f"{len(jobs)} methods"
    return engines.Job(f"seed {seed}", what, seed_job, (recipe, out, jobs, keep), out / "logs" / f"seed-{seed}.log")


def seed_job(recipe: Recipe, out: Path, jobs: Sequence[Job], keep: bool) -> list[str]:
    """A worker's job: all methods of one seed. Returns the warnings."""
    from cpift.console.terminal import Terminal

    class Kept(Terminal):
        def warning(self, text: str) -> None:
            warnings.append(text)
            super().warning(text)

    warnings: list[str] = []
    _seed(recipe, out, jobs, keep, Kept())
    return warnings


def _seed(
    recipe: Recipe, out: Path, jobs: Sequence[Job], keep: bool, reporter: Reporter, told: Any = lambda: None
) -> None:
    """All jobs of one seed; weights are deleted when the last of them is scored."""
    for job in jobs:
        if _result(recipe, out, job) is None:
            _run(recipe, out, job, reporter, keep)
            told()
    if not keep:
        for folder in (out / "seeds" / str(jobs[0].seed)).glob("*/*"):
            for file in folder.glob("stages/**/model*.safetensors"):
                file.unlink()


def _run(recipe: Recipe, out: Path, job: Job, reporter: Reporter, keep: bool) -> None:
    method = METHODS[job.name]
    mine = recipe.changed({**overrides_of(job.method), "seed": job.seed})
    place = out / "seeds" / job.folder
    reporter.message(f"{job.method}, {job.budget}, seed {job.seed}")
    result: dict[str, Any]
    if job.budget == "incremental" and method.arrive:
        work = Work(mine, place, siblings(out, job), reporter, None)
        arrivals = method.arrive(work)
        result = {"scores": arrivals[-1].scores, "arrivals": [_brief(a) for a in arrivals]}
    elif method.run:
        tokens = None
        if job.budget == "equal_tokens" and method.budgeting is not Budgeting.NONE:
            mine, tokens = equal_tokens(recipe, mine, out, job, reporter)
        work = Work(mine, place, siblings(out, job), reporter, tokens)
        result = {"scores": method.run(work)}
        if tokens is not None and work.trained and abs(work.spent() / tokens - 1) > TOLERANCE:
            reporter.warning(f"{job.method}: {work.spent()} tokens, {work.spent() / tokens - 1:+.1%} of the budget")
    result |= {"tokens": work.spent(), "seconds": work.seconds(), "key": _key(recipe, job)}
    file = _result_file(out, job)
    file.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_whole(file, json.dumps(result))
    if not keep and not method.serves_others:
        for weights in list(place.glob("stages/**/model*.safetensors")):
            if weights.exists() and weights.stat().st_nlink == 1:
                shutil.rmtree(weights.parent)


def write(recipe: Recipe, out: Path, jobs: Sequence[Job], reference: str, known: dict[Any, Any]) -> dict[str, Any]:
    """Gather what is done into ``comparison.json``. ``known`` keeps statistics for the next call: they take long."""

    budgets: dict[str, dict[str, dict[str, Any]]] = {}
    missing = 0
    for job in jobs:
        found = _result(recipe, out, job)
        missing += found is None
        if found is not None:
            budgets.setdefault(job.budget, {}).setdefault(job.method, {})[str(job.seed)] = found
    tasks: dict[str, dict[str, Any]] = {}
    for methods in budgets.values():
        for results in methods.values():
            for result in results.values():
                for task, score in result["scores"].items():
                    tasks.setdefault(task, {"metric": score["metric"], "rows": len(score["items"])})
    tasks = {task: tasks[task] for task in recipe.tasks if task in tasks}

    def once(what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any] | None, make: Any) -> dict[str, Any]:
        key = (what, *tasks, tuple(mine), tuple(theirs or ()))  # what is done with these seeds does not change
        if key not in known:
            known[key] = make()
        found: dict[str, Any] = known[key]
        return found

    def told(budget: str, method: str, mine: Any, methods: Mapping[str, Any]) -> dict[str, Any]:
        best = methods.get(specialist())
        return once(f"summary/{budget}/{method}", mine, best, lambda: summary(mine, tasks, best))

    def compared(budget: str, method: str, mine: Any, theirs: Any) -> dict[str, Any]:
        return once(f"difference/{budget}/{method}", mine, theirs, lambda: difference(mine, theirs, tasks))

    def forgot(method: str, mine: Any) -> dict[str, Any]:
        return once(f"forgetting/{method}", mine, None, lambda: forgetting(mine, tasks))

    whole = {
        "format": FORMAT,
        "state": "running" if missing else "done",
        "recipe": recipe.model_dump(by_alias=True, mode="json"),
        "versions": versions(),
        "tasks": tasks,
        "seeds": sorted({job.seed for job in jobs}),
        "reference": reference,
        "budgets": budgets,
        "summary": {
            budget: {m: told(budget, m, r, methods) for m, r in methods.items()} for budget, methods in budgets.items()
        },
        "differences": {
            budget: [
                {"method": m, "against": reference, **compared(budget, m, r, methods[reference])}
                for m, r in methods.items()
                if m != reference and reference in methods
            ]
            for budget, methods in budgets.items()
        },
        "forgetting": {m: forgot(m, results) for m, results in budgets.get("incremental", {}).items()},
    }
    manifest.write_whole(out / FILE, json.dumps(whole))
    return whole


def _brief(arrival: Arrival) -> dict[str, Any]:
    return {
        "task": arrival.task,
        "tokens": arrival.tokens,
        "scores": {task: score["score"] for task, score in arrival.scores.items()},
        "items": {task: score["items"] for task, score in arrival.scores.items()},
    }


def _key(recipe: Recipe, job: Job) -> str:
    """Stands for what a job's result is made of."""
    parts = [recipe.model_dump(by_alias=True, mode="json"), job.budget, job.method, job.seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _result_file(out: Path, job: Job) -> Path:
    return out / "results" / f"{job.folder}.json"


def _result(recipe: Recipe, out: Path, job: Job) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(_result_file(out, job).read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("key") == _key(recipe, job) else None
