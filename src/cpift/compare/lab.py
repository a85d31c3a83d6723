"""``compare()``: methods × seeds × budgets, side by side on a recipe's tasks; what is done is not done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import cast

from cpift.compare.budget import TOLERANCE, equal_tokens
from cpift.compare.jobs import Budget, Job, jobs_of, overrides_of, siblings
from cpift.compare.merging import mergekit
from cpift.compare.methods import METHODS, REFERENCE
from cpift.compare.methods.method import Arrival, Budgeting
from cpift.compare.record import FILE, Record, arrival_entry, key_of, read_result, write_result
from cpift.compare.tuning import FOLDER as TUNING
from cpift.compare.tuning import chosen, held_out, scaled, trial_jobs, with_factors
from cpift.compare.workbench import Work
from cpift.console.reporter import Reporter
from cpift.console.terminal import Terminal
from cpift.distributed import engine as engines
from cpift.distributed import ranks
from cpift.distributed.engine import Engine
from cpift.errors import CpiftError
from cpift.files import manifest
from cpift.files.layout import RunLayout
from cpift.files.lock import alone
from cpift.method.criteria import Needs
from cpift.metrics.comparison import ComparisonRecord, Result, Trials
from cpift.metrics.score import Scores
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import check, report
from cpift.train.orthogonal import check_osf


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
    tune: int | None = None,
    reporter: Reporter | None = None,
) -> ComparisonRecord:
    """Train and score the methods, each with each seed; called again, it makes what is missing.

    Args:
        recipe: base model, tasks and settings.
        out: folder of the comparison.
        methods: names; settings of its own follow a name, as in ``cpi_ft:fuse.space=updates,refine.data=mixed``.
        seeds: each method is run with each.
        budgets: "paper", each method as the paper runs it; "equal_tokens", each sees as many training tokens as CPI-FT
            does in all; "incremental", the tasks arrive one after the other.
        reference: the method that all others are set against.
        engine: where seeds are worked on side by side (:func:`cpift.distributed.engine.make_engine`); None: one by one, here.
        keep_models: keep the weights of what has been scored.
        tune: number of learning rates that each method tries first, on rows held out from training, at least two; None: the
            recipe's rates are used.
        reporter: receives progress and warnings; None prints nothing.

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
    for job in wanted:
        if METHODS[job.name].needs_osf:
            check_osf(f"--methods {job.method}")
    distinct = {json.dumps(keys, sort_keys=True): keys for keys in (overrides_of(job.method) for job in wanted)}
    adapted = [stage for overrides in distinct.values() for stage in recipe.changed(overrides).stages_by_adapter]
    if adapted:
        raise CpiftError(
            f"{adapted[0]}.adapter: cpift compare sets methods that train all parameters side by side; leave it out"
        )
    for job in wanted:
        part = recipe.changed(overrides_of(job.method)).region
        if job.budget == "incremental" and part.entry.needs is Needs.ALL_UPDATES:
            raise CpiftError(
                f"{job.method}: region.by: {part.by} compares the probes of all tasks, and under --budget incremental "
                "these arrive one by one; choose another"
            )
    for overrides in distinct.values():  # most methods change nothing, and the base is read through for each
        check(recipe.changed(overrides), out / "check")
    if out.is_dir() and any(out.iterdir()) and not (out / FILE).is_file() and not RunLayout(out).recipe.is_file():
        raise CpiftError(f"{out}: is not empty and holds no comparison; choose another --out")
    if tune is not None and len(budgets) > 1:
        raise CpiftError("--tune: give one --budget; a method may have another learning rate under each")
    trials = [] if tune is None else trial_jobs(wanted, tune)

    with engine or nullcontext(), alone(out):
        manifest.write_whole(RunLayout(out).recipe, recipe.dump())
        tuned = _tuned(recipe, out, trials, seeds, engine, reporter) if trials else {}
        wanted = with_factors(wanted, tuned)
        record = Record(recipe, out, wanted, reference, tuned)
        by_seed = {seed: [job for job in wanted if job.seed == seed] for seed in seeds}
        if engine and (len(seeds) > 1 or engine.elsewhere):
            worker_jobs = [_worker_job(recipe, out.absolute(), todo, keep_models) for todo in by_seed.values()]
            _by_workers(engine, worker_jobs, reporter, record.write)
        else:
            for todo in by_seed.values():
                _seed(recipe, out, todo, keep_models, reporter, record.write)
        written = record.write()
        report(out, reporter)
        return written


def _tuned(
    recipe: Recipe, out: Path, trials: Sequence[Job], seeds: Sequence[int], engine: Engine | None, reporter: Reporter
) -> dict[str, Trials]:
    """Run the trials on rows held out from training; the outcome of each method's."""
    place = out / TUNING
    held = held_out(recipe, place / "rows", seeds)
    check(held, out / "check")
    reporter.message(f"tuning: {len(trials)} trials of a learning rate, on rows held out from training")
    if engine and engine.elsewhere:
        _by_workers(engine, [_worker_job(held, place.absolute(), trials, False)], reporter)
    else:
        _seed(held, place, trials, False, reporter)
    results = {job: read_result(held, place, job) for job in trials}
    return chosen({job: result for job, result in results.items() if result is not None})


def _by_workers(
    engine: Engine, jobs: Sequence[engines.Job], reporter: Reporter, done: Callable[[], object] = lambda: None
) -> None:
    with closing(engine.run(jobs, reporter.message)) as ended:
        for _, warnings in ended:
            for text in cast("list[str]", warnings):
                reporter.warning(text)
            done()


def _worker_job(recipe: Recipe, out: Path, jobs: Sequence[Job], keep: bool) -> engines.Job:
    """One seed as a job. Its methods stay together, as each takes over what those before it have trained."""
    seed = jobs[0].seed
    return engines.Job(
        f"seed {seed}", f"{len(jobs)} methods", seed_job, (recipe, out, jobs, keep), out / "logs" / f"seed-{seed}.log"
    )


def seed_job(recipe: Recipe, out: Path, jobs: Sequence[Job], keep: bool) -> list[str]:
    """A worker's job: all methods of one seed. Returns the warnings."""

    class Kept(Terminal):
        """A terminal that keeps what it warns of."""

        def warning(self, text: str) -> None:
            """Show a warning, and keep it."""
            warnings.append(text)
            super().warning(text)

    warnings: list[str] = []
    _seed(recipe, out, jobs, keep, Kept())
    return warnings


def _seed(
    recipe: Recipe,
    out: Path,
    jobs: Sequence[Job],
    keep: bool,
    reporter: Reporter,
    done: Callable[[], object] = lambda: None,
) -> None:
    """All jobs of one seed; weights are deleted when the last of them is scored."""
    for job in jobs:
        if read_result(recipe, out, job) is None:
            _run(recipe, out, job, reporter, keep)
            done()
    if not keep:
        for folder in (out / "seeds" / str(jobs[0].seed)).glob("*/*"):
            for file in folder.glob("stages/**/model*.safetensors"):
                file.unlink()


def _run(recipe: Recipe, out: Path, job: Job, reporter: Reporter, keep: bool) -> None:
    method = METHODS[job.name]
    changed = scaled(recipe.changed({**overrides_of(job.method), "seed": job.seed}), job.factor)
    folder = out / "seeds" / job.folder
    reporter.message(f"{job.method}, {job.budget}, seed {job.seed}")
    scores: Scores = {}
    arrivals: list[Arrival] = []
    if job.budget == "incremental" and method.arrive:
        work = Work(changed, folder, siblings(out, job), reporter, None)
        arrivals = method.arrive(work)
        scores = arrivals[-1].scores
    elif method.run:
        tokens = None
        if job.budget == "equal_tokens" and method.budgeting is not Budgeting.NONE:
            changed, tokens = equal_tokens(recipe, changed, out, job, reporter)
        work = Work(changed, folder, siblings(out, job), reporter, tokens)
        scores = method.run(work)
        if tokens is not None and work.trained and abs(work.spent() / tokens - 1) > TOLERANCE:
            reporter.warning(f"{job.method}: {work.spent()} tokens, {work.spent() / tokens - 1:+.1%} of the budget")
    result: Result = {"scores": scores, "tokens": work.spent(), "seconds": work.seconds(), "key": key_of(recipe, job)}
    if (guard := work.guard()) is not None:
        result["guard"] = guard
    if arrivals:
        result["arrivals"] = [arrival_entry(arrival) for arrival in arrivals]
    write_result(out, job, result)
    if not keep and not method.serves_others:
        for weights in list(folder.glob("stages/**/model*.safetensors")):
            if weights.exists() and weights.stat().st_nlink == 1:
                shutil.rmtree(weights.parent)
