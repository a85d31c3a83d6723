"""``run()``: the stages in their order, each made once; what is done and unchanged is not done again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from cpift.console.format import size
from cpift.console.reporter import Reporter
from cpift.distributed import ranks
from cpift.distributed.engine import Engine
from cpift.distributed.leader import Leader, orders
from cpift.errors import CpiftError
from cpift.files import manifest
from cpift.files.layout import RunLayout
from cpift.files.lock import alone
from cpift.recipe.recipe import STAGES, Recipe
from cpift.recipe.yaml import origins
from cpift.report import make_report
from cpift.runs.arrival_checks import check_place
from cpift.runs.arrival_outcome import write_arrivals
from cpift.runs.executor import Runner, log
from cpift.runs.mirror import Mirror
from cpift.runs.preflight import check_models, read_rows
from cpift.runs.publish import write_outcome
from cpift.runs.stage import Run, Stage
from cpift.runs.stages.graph import phases
from cpift.runs.trim import trim
from cpift.train.config import check_training, join
from cpift.train.trackers import track_scores


def run(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    until: str | None = None,
    reporter: Reporter | None = None,
    given: Mapping[str, str] | None = None,
    engine: Engine | None = None,
    mirror: str | None = None,
    shared: Sequence[Path] = (),
) -> dict[str, object]:
    """Run the whole method. Called again, it resumes, and redoes only what changed.

    Args:
        recipe: a recipe, or the path of one.
        out: the run folder.
        until: last kind of stage to run, one of ``STAGES``.
        reporter: receives progress and warnings.
        given: for the report, dotted keys to where they were given (:func:`cpift.recipe.yaml.origins`); a path tells itself.
        engine: where probes and scores are made side by side (:func:`cpift.distributed.engine.make_engine`); None: one at a time, here.
        mirror: a URL that fsspec knows; finished stages are copied there, and those that ``out`` lacks taken back.
        shared: other run folders; a stage that one of them has made is taken over.

    Returns:
        What ``scores.json`` holds; empty where ``until`` ends before the scores.

    Raises:
        CpiftError: bad input; ``out`` holds something else, or another process is at work in it; the mirror cannot
            be reached, or its copy is not complete at the end.
    """
    if not isinstance(recipe, Recipe):
        path, recipe = recipe, Recipe.load(recipe)
        given = given or origins(path)
    if until is not None and until not in STAGES:
        raise CpiftError(f"until: {until} is not one of {', '.join(STAGES)}")
    out = Path(out)
    ranks.check()
    join()
    if not ranks.leads():
        return _follow(Run(recipe, out))
    current = Run(recipe, out, reporter or Reporter(), shared=tuple(shared))
    with Leader() as leader:
        return _lead(current, until, leader, given, engine, mirror)


def _lead(
    current: Run,
    until: str | None,
    leader: Leader,
    given: Mapping[str, str] | None,
    engine: Engine | None,
    mirror: str | None,
) -> dict[str, object]:
    recipe, out, reporter = current.recipe, current.out, current.reporter
    check(recipe, out)
    place = RunLayout(out)
    copy = Mirror(mirror, recipe, out, reporter) if mirror is not None else None
    read_rows(current)
    with engine or nullcontext(), alone(out):
        if copy:
            copy.begin()
        scores_before = place.scores.read_bytes() if place.scores.is_file() else b""
        manifest.write_whole(place.recipe, recipe.dump())
        log(out, {"event": "start", **({"origins": dict(given)} if given else {})})
        runner = Runner(current, leader, engine, copy)
        try:
            result = _all(current, runner, until)
        except Exception as error:
            with suppress(OSError):  # of a full disk the error itself must be seen
                log(out, {"event": "error", "stage": runner.now, "error": " ".join(str(error).split())[:1000]})
                report(out, reporter)
            raise
        if result:
            report(out, reporter)
        if result and place.scores.read_bytes() != scores_before:
            track(recipe, out, result, reporter)
        if copy:
            copy.finish(model=bool(result))
        return result


def _all(current: Run, runner: Runner, until: str | None) -> dict[str, object]:
    began = time.perf_counter()
    for stages in phases(current):
        wanted = _until(stages, until)
        runner.make(wanted)
        if len(wanted) < len(stages):
            return {}
    if until is not None and until != "evaluate":
        return {}
    write = write_arrivals if current.recipe.arrivals else write_outcome
    stages = [stage for part in phases(current) for stage in part]
    runner.bring_back([stage for stage in stages if stage.writes_model][-1])
    result = write(current, stages)
    if current.recipe.output.keep == "final" and (freed := trim(current, stages)):
        current.reporter.message(f"output.keep: final: the weights of earlier stages are removed, {size(freed)} free")
    log(current.out, {"event": "run", "seconds": time.perf_counter() - began})
    return result


def _until(stages: Sequence[Stage], until: str | None) -> list[Stage]:
    """The stages up to a kind. One that needs a stage after it, as the core of an arrival does, is left out, too."""
    if until is None:
        return list(stages)
    wanted, left_out = list[Stage](), set[str]()
    for stage in stages:
        if STAGES.index(stage.kind) > STAGES.index(until) or left_out.intersection(stage.needs):
            left_out.add(stage.name)
        else:
            wanted.append(stage)
    return wanted


def report(out: Path, reporter: Reporter) -> None:
    """Write ``report.html``; an error in it is reported, and leaves the run as it is."""
    try:
        make_report(out)
    except Exception as error:
        reporter.warning(f"the report was not written ({error}); cpift report {out} tries again")


def track(recipe: Recipe, out: Path, result: Mapping[str, object], reporter: Reporter) -> None:
    """Give the scores to the services of ``report_to``; an error of theirs is reported, and leaves the run as it is."""
    try:
        track_scores(recipe.training, out, result)
    except Exception as error:
        reporter.warning(f"the scores were not logged to {recipe.training.get('report_to')} ({error})")


def _follow(current: Run) -> dict[str, object]:
    """Of a process that does not lead: its part in each training and scoring."""
    for names in orders():
        stage = next(stage for stages in phases(current) for stage in stages if stage.name == names[0])
        stage.action({name: manifest.partial_of(current.folder(name)) for name in names})
    return {}


def check(recipe: Recipe, out: Path) -> None:
    """Refuse, before anything is written, what could not work. Raises :class:`CpiftError`."""
    ranks.check()
    if out.exists() and not out.is_dir():
        raise CpiftError(f"{out}: is a file; --out names a folder")
    place = RunLayout(out)
    old = place.recipe
    if old.is_file():
        before = Recipe.load(old)
        if before.model != recipe.model or before.seed != recipe.seed or not set(before.tasks) & set(recipe.tasks):
            what = "model" if before.model != recipe.model else "seed" if before.seed != recipe.seed else "tasks"
            raise CpiftError(f"{out}: holds another recipe's run (its {what} differ); choose another --out")
    elif out.is_dir() and any(p.name not in (place.lock.name, place.plan.name) for p in out.iterdir()):
        raise CpiftError(f"{out}: is not empty and holds no run; choose another --out")
    if recipe.arrivals:
        check_place(recipe, out)
    check_models(recipe)
    if recipe.arrivals:
        check_training(recipe.training_of("arrivals"), "arrivals.training")
    for stage in ("probe", "backbone", "refine"):
        check_training(recipe.training_of(stage), "training" if stage == "probe" else f"{stage}.training")
