"""``run()``: the stages in their order, each made once; what is done and unchanged is not done again."""

from __future__ import annotations

import fcntl
import json
import platform
import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cpift import manifest, team
from cpift.checkpoint import open_checkpoint
from cpift.errors import CpiftError, is_disk_full
from cpift.mirror import Mirror
from cpift.recipe import STAGES, Recipe, origins
from cpift.reporter import Reporter
from cpift.stages import Run, Stage, first_stages

VERSIONS = ("cpift", "torch", "transformers", "trl", "accelerate", "datasets", "safetensors", "numpy")


def run(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    until: str | None = None,
    reporter: Reporter | None = None,
    given: Mapping[str, str] | None = None,
    mirror: str | None = None,
) -> dict[str, Any]:
    """Run the whole method; called again, it goes on where it stopped, and redoes only what changed.

    Args:
        recipe: a recipe, or the path of one.
        out: the run folder.
        until: last kind of stage to run, one of ``STAGES``.
        reporter: told what happens.
        given: for the report, dotted keys to where they were given (:func:`cpift.recipe.origins`); a path tells itself.
        mirror: a URL that fsspec knows; finished stages are copied there, and those that ``out`` lacks taken back.

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
    from cpift.training import join

    team.check()
    join()
    if not team.leads():
        return _follow(Run(recipe, out))
    with team.Leader() as leader:
        return _lead(recipe, out, until, reporter or Reporter(), leader, given, mirror)


def _lead(
    recipe: Recipe,
    out: Path,
    until: str | None,
    reporter: Reporter,
    leader: team.Leader,
    given: Mapping[str, str] | None,
    mirror: str | None,
) -> dict[str, Any]:
    check(recipe, out)
    copy = Mirror(mirror, recipe, out, reporter) if mirror is not None else None
    from cpift.preflight import read_rows

    current = Run(recipe, out, reporter)
    read_rows(current)
    with alone(out):
        if copy:
            copy.begin()
        manifest.write_whole(out / "recipe.yaml", recipe.dump())
        log(out, {"event": "start", **({"origins": dict(given)} if given else {})})
        runner = Runner(current, leader, copy)
        try:
            result = _all(current, runner, until)
        except Exception as error:
            with suppress(OSError):  # of a full disk the error itself must be seen
                log(out, {"event": "error", "stage": runner.now, "error": " ".join(str(error).split())[:1000]})
                report(out, reporter)
            raise
        if result:
            report(out, reporter)
        if copy:
            copy.finish(model=bool(result))
        return result


def _all(current: Run, runner: Runner, until: str | None) -> dict[str, Any]:
    began = time.perf_counter()
    for stages in _phases(current):
        wanted = [s for s in stages if until is None or STAGES.index(s.kind) <= STAGES.index(until)]
        runner.make(wanted)
        if len(wanted) < len(stages):
            return {}
    if until is not None and until != "evaluate":
        return {}
    from cpift.outcome import write_outcome

    result = write_outcome(current, [s for stages in _phases(current) for s in stages])
    log(current.out, {"event": "run", "seconds": time.perf_counter() - began})
    return result


def report(out: Path, reporter: Reporter) -> None:
    """Write ``report.html``; what goes wrong in it is told, and costs nothing but the page."""
    from cpift.report import make_report

    try:
        make_report(out)
    except Exception as error:
        reporter.warning(f"the report was not written ({error}); cpift report {out} tries again")


def _phases(current: Run) -> Iterator[list[Stage]]:
    """The stages, as far as each can be known: rows first, then regions and groups, then what the groups decide."""
    from cpift.method import last_stages, middle_stages

    yield first_stages(current)
    yield middle_stages(current)
    yield last_stages(current)


def _follow(current: Run) -> dict[str, Any]:
    """Of a process that does not lead: its part in each training."""
    for name in team.orders():
        stage = next(stage for stages in _phases(current) for stage in stages if stage.name == name)
        stage.action({name: manifest.partial_of(current.folder(name))})
    return {}


def check(recipe: Recipe, out: Path) -> None:
    """Refuse, before anything is written, what could not work. Raises :class:`CpiftError`."""
    team.check()
    if out.exists() and not out.is_dir():
        raise CpiftError(f"{out}: is a file; --out names a folder")
    old = out / "recipe.yaml"
    if old.is_file():
        before = Recipe.load(old)
        if before.model != recipe.model or before.seed != recipe.seed or not set(before.tasks) & set(recipe.tasks):
            what = "model" if before.model != recipe.model else "seed" if before.seed != recipe.seed else "tasks"
            raise CpiftError(f"{out}: holds another recipe's run (its {what} differ); choose another --out")
    elif out.is_dir() and any(p.name not in (".lock", "plan.json") for p in out.iterdir()):
        raise CpiftError(f"{out}: is not empty and holds no run; choose another --out")
    from cpift.preflight import check_models
    from cpift.training import check_training

    check_models(recipe)
    for stage in ("probe", "backbone", "refine"):
        check_training(recipe.training_of(stage), "training" if stage == "probe" else f"{stage}.training")


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the run folder for this process. Raises :class:`CpiftError` where another has it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CpiftError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CpiftError(
                f"{out}: another cpift is at work in this folder; wait for it, or choose another --out"
            ) from None
        yield


class Runner:
    """Makes stages of one run, each once; ``leader`` tells the other processes of a training what to do."""

    def __init__(self, current: Run, leader: team.Leader | None = None, mirror: Mirror | None = None) -> None:
        self._run, self._leader, self._mirror = current, leader or team.Leader(), mirror
        self._verified: set[str] = set()
        self.now = ""  # the stage under way, for the log of a failure

    def make(self, stages: Sequence[Stage]) -> None:
        """Make what is missing or stale, in order; stages made together when the first of them is due."""
        done: set[str] = set()
        for stage in stages:
            if stage.name in done:
                continue
            due = [s for s in stages if s is stage or (stage.together and s.together == stage.together)]
            due = [s for s in due if self._missing(s) and not self._adopted(s)]
            if due:
                self._make(due)
            for s in due:
                done.add(s.name)
            if stage not in due:
                self._run.reporter.skipped(stage.name)
                self._warn_again(stage)
            if stage.kind in ("group", "evaluate"):  # read by no stage, but by the run itself
                self._verify(stage.name)
            if self._mirror:
                self._mirror.store([stage.name, *(s.name for s in due)])

    def _missing(self, stage: Stage) -> bool:
        made = manifest.read(self._run.folder(stage.name))
        return made is None or made.key != manifest.key_of(stage.settings, self._needs(stage))

    def _adopted(self, stage: Stage) -> bool:
        places = [out / "stages" / stage.name for out in self._run.shared]
        key = manifest.key_of(stage.settings, self._needs(stage))
        if self._mirror and self._mirror.bring(stage.name, key):
            self._verified.add(stage.name)
            return True
        return bool(places) and manifest.adopt(self._run.folder(stage.name), key, places)

    def _needs(self, stage: Stage) -> dict[str, str]:
        return needs_of(self._run, stage)

    def _make(self, due: Sequence[Stage]) -> None:
        run, first = self._run, due[0]
        self.now = first.name
        what = first.what if len(due) == 1 else f"{first.what} and {len(due) - 1} more"
        if first.together.startswith("evaluate"):
            what = f"{first.what} on {len(due)} tasks"
        for stage in due:
            made = manifest.read(run.folder(stage.name))
            if made is not None:
                changes = manifest.differences(made, stage.settings, self._needs(stage))
                run.reporter.message(f"{stage.name} is done again: {', '.join(changes)}")
            for need in stage.needs:
                self._verify(need)
        if any(stage.writes_model for stage in due):
            _check_room(run, first)
        run.reporter.stage(first.name, what)
        folders = {s.name: manifest.begin(run.folder(s.name), manifest.key_of(s.settings, self._needs(s))) for s in due}
        reset_peak()
        began = time.perf_counter()
        try:
            if first.trains:
                self._leader.train(first.name)
            facts = first.action(folders)
        except Exception as error:
            if not isinstance(error, CpiftError) and is_disk_full(error):
                raise CpiftError(
                    f"{first.name}: the disk is full; make room and run again, finished stages stand"
                ) from error
            raise
        seconds, peak = time.perf_counter() - began, peak_memory()
        for stage in due:
            needs = self._needs(stage)
            full = {
                **facts.get(stage.name, {}),
                "seconds": seconds / len(due),
                "peak_memory": peak,
                "disk": manifest.disk_of(folders[stage.name]),
                "seed": run.recipe.seed,
                "versions": versions(),
            }
            warnings = full.get("warnings", []) + [w for w in run.warnings if w.startswith(f"{stage.name}:")]
            key = manifest.key_of(stage.settings, needs)
            manifest.finish(run.folder(stage.name), key, stage.settings, needs, {**full, "warnings": warnings})
            self._verified.add(stage.name)
            self._warn_again(stage, fresh=True)
            log(run.out, {"event": "stage", "stage": stage.name, "seconds": seconds / len(due), "peak_memory": peak})
        run.reporter.finished(first.name, full)

    def _verify(self, name: str) -> None:
        """Hash what a stage has left, once, before it is used."""
        if name not in self._verified:
            manifest.verify_stage(self._run.folder(name))
            self._verified.add(name)

    def _warn_again(self, stage: Stage, fresh: bool = False) -> None:
        for text in self._run.facts(stage.name).get("warnings", []):
            if not fresh or text not in self._run.warnings:
                self._run.warn(text)


def needs_of(current: Run, stage: Stage) -> dict[str, str]:
    """Digests of the stages that this one is made from; "" for one that is not there."""
    found = {name: manifest.read(current.folder(name)) for name in stage.needs}
    return {name: made.digest if made else "" for name, made in found.items()}


def versions() -> dict[str, str]:
    """Versions of python and of the libraries that decide about results."""
    import importlib.metadata

    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in VERSIONS}}


def log(out: Path, event: Mapping[str, Any]) -> None:
    """Append one line to ``log.jsonl``."""
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **event}) + "\n")


def _check_room(current: Run, stage: Stage) -> None:
    """Raise :class:`CpiftError` where the disk cannot hold the model that the stage will write, in fp32."""
    if stage.name == "00-base":
        return
    needed = int(open_checkpoint(current.base).total * 4 * 1.05)
    free = shutil.disk_usage(current.out).free
    if free < needed:
        raise CpiftError(
            f"{stage.name}: needs {needed / 1e9:.1f} GB in {current.out}, the disk has {free / 1e9:.1f} GB free; make room first"
        )


def reset_peak() -> None:
    """Let :func:`peak_memory` count from here, where the system can."""
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak memory of this process in bytes, since the last reset where the system can tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if platform.system() == "Linux" else 1)
