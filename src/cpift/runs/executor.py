"""Run the missing and stale stages of a run, each once: in this process, or side by side on an engine's workers."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from cpift.checkpoint.identity import identities
from cpift.checkpoint.reader import open_checkpoint
from cpift.console.terminal import Terminal
from cpift.distributed.engine import Engine, Job, JobError
from cpift.distributed.leader import Leader
from cpift.errors import CpiftError
from cpift.files import layout, manifest
from cpift.files.findings import read_findings
from cpift.files.layout import RunLayout
from cpift.recipe.recipe import Recipe
from cpift.runs.make import make, needs_of
from cpift.runs.mirror import Mirror
from cpift.runs.publish import is_published
from cpift.runs.stage import Run, Stage
from cpift.runs.stages.graph import phases
from cpift.runs.trim import is_trimmed

_SEEN_WITHIN = 60  # seconds


class Runner:
    """Makes stages of one run, each once.

    leader: tells the other processes of a training what to do. engine: where stages that can be made side by side go.
    mirror: finished stages are copied there, and missing ones taken back.
    """

    def __init__(
        self,
        current: Run,
        leader: Leader | None = None,
        engine: Engine | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self._run, self._leader, self._engine, self._mirror = current, leader or Leader(), engine, mirror
        self._verified: set[str] = set()
        self._known: dict[str, Stage] = {}  # so that a stage whose weights were removed can be made again
        self.now = ""  # the stage under way, for the log of a failure

    def make(self, stages: Sequence[Stage]) -> None:
        """Make what is missing or stale, in order; stages made together when the first of them is due."""
        self._known |= {stage.name: stage for stage in stages}
        for batch in _batches(stages, self._engine):
            found = [[s for s in unit if self._missing(s) and not self._adopted(s)] for unit in batch]
            due = [unit for unit in found if unit]
            if due and self._engine and _goes_out(batch, self._engine):
                self._make_out(due, self._engine)
            else:
                for unit in due:
                    self._make(unit)
            made = {stage.name for unit in due for stage in unit}
            for stage in (stage for unit in batch for stage in unit):
                if stage.name not in made:
                    self._run.reporter.skipped(stage.name)
                    self._add_findings(stage)
                    if self._mirror:
                        self._mirror.store([stage.name])
                if stage.kind in ("group", "evaluate"):  # read by no stage, but by the run itself
                    self._verify(stage.name)

    def bring_back(self, stage: Stage) -> None:
        """Make a finished stage again where its weights were removed and ``model/`` holds another checkpoint."""
        folder = self._run.folder(stage.name)
        if is_trimmed(folder) and not is_published(self._run, folder):
            self._run.reporter.message(f"{stage.name} is made again: model/ needs its weights")
            self._make([stage])

    def _missing(self, stage: Stage) -> bool:
        made = manifest.read(self._run.folder(stage.name))
        return made is None or made.key != manifest.key_of(stage.made_of, self._needs(stage))

    def _adopted(self, stage: Stage) -> bool:
        places = [RunLayout(out).stage(stage.name) for out in self._run.shared]
        key = manifest.key_of(stage.made_of, self._needs(stage))
        if self._mirror and self._mirror.bring(stage.name, key):
            self._verified.add(stage.name)
            return True
        return bool(places) and manifest.adopt(self._run.folder(stage.name), key, places)

    def _needs(self, stage: Stage) -> dict[str, str]:
        return needs_of(self._run, stage)

    def _make(self, due: Sequence[Stage]) -> None:
        first = due[0]
        self.now = first.name
        self._prepare(due)
        _check_room(self._run, due)
        began = time.perf_counter()
        self._run.reporter.stage(first.name, _what(due))
        make(self._run, due, lambda: self._leader.share([s.name for s in due]) if first.by_all else None)
        self._made(due)
        took = time.perf_counter() - began  # of all that was made together, hashes and copies included
        self._run.reporter.finished(first.name, {**self._run.facts(first.name), "seconds": took})

    def _make_out(self, due: Sequence[Sequence[Stage]], engine: Engine) -> None:
        """Have workers make these, side by side, each what belongs together."""
        run, jobs = self._run, {}
        for unit in due:
            self.now = unit[0].name
            self._prepare(unit)
            arguments = run.recipe, run.out.absolute(), [s.name for s in unit], dict(identities)
            log_file = RunLayout(run.out.absolute()).job_log(unit[0].name)
            jobs[unit[0].name] = unit, Job(unit[0].name, _what(unit), make_stages, arguments, log_file)
        _check_room(run, [stage for unit in due for stage in unit])
        try:
            with closing(engine.run([job for _, job in jobs.values()], run.reporter.message)) as done:
                for job, _ in done:
                    self.now = job.name
                    unit = jobs[job.name][0]
                    for stage in unit:
                        _await(run.folder(stage.name))
                    self._made(unit)
        except JobError as error:
            self.now = error.job
            raise

    def _prepare(self, due: Sequence[Stage]) -> None:
        for stage in due:
            made = manifest.read(self._run.folder(stage.name))
            if made is not None:
                changes = manifest.differences(made, stage.made_of, self._needs(stage))
                self._run.reporter.message(f"{stage.name} is done again: {', '.join(changes)}")
            for need in stage.needs:
                if is_trimmed(self._run.folder(need)):
                    self._run.reporter.message(f"{need} is made again: {stage.name} needs its weights")
                    self._make([self._known[need]])
                self._verify(need)

    def _made(self, due: Sequence[Stage]) -> None:
        for stage in due:
            self._verified.add(stage.name)
            self._add_findings(stage)
            facts = self._run.facts(stage.name)
            names = ("seconds", "peak_memory", "peak_device_memory")
            measured = {name: value for name, value in facts.items() if name in names}
            log(self._run.out, {"event": "stage", "stage": stage.name, **measured})
        if self._mirror:
            self._mirror.store([stage.name for stage in due])

    def _verify(self, name: str) -> None:
        """Hash what a stage has left, once, before it is used."""
        if name not in self._verified:
            manifest.verify_stage(self._run.folder(name))
            self._verified.add(name)

    def _add_findings(self, stage: Stage) -> None:
        """Take over what the stage has found, whoever made it: this process, a worker, or an earlier call."""
        for finding in read_findings(self._run.facts(stage.name), stage.name):
            self._run.add(finding)


def make_stages(recipe: Recipe, out: Path, names: Sequence[str], known: Mapping[Path, Any]) -> None:
    """A worker's job: make these stages of a run whose folder the leader holds.

    known: what the leader knows of checkpoints (:data:`cpift.runs.identity.identities`), so that not every worker reads them.
    """
    if not RunLayout(out).recipe.is_file():
        raise CpiftError(f"{out}: is not seen on {platform.node()}; all nodes must see the run folder under one path")
    identities.update(known)
    current = Run(recipe, out, Terminal())
    for stages in phases(current, first=False):
        due = [stage for stage in stages if stage.name in names]
        if due:
            make(current, due)
            break


def _batches(stages: Sequence[Stage], engine: Engine | None) -> Iterator[list[list[Stage]]]:
    """What is made together; and with an engine, side by side: neighbours of a kind that do not need one another.

    Finished stages count as well, so that a resumed run places every stage alike and uses the same thread counts.
    """
    units: dict[str, list[Stage]] = {}
    for stage in stages:
        units.setdefault(stage.together or stage.name, []).append(stage)
    batch: list[list[Stage]] = []
    for unit in units.values():
        names = {stage.name for others in batch for stage in others}
        alike = batch and _independent(unit) and batch[-1][0].kind == unit[0].kind
        if batch and (not engine or not alike or any(names.intersection(stage.needs) for stage in unit)):
            yield batch
            batch = []
        batch.append(unit)
    if batch:
        yield batch


def _independent(unit: Sequence[Stage]) -> bool:
    """Long enough to be a job? Selection, grouping and fusion are not: they are less than 1 % of a run."""
    return unit[0].trains or unit[0].kind == "evaluate"


def _goes_out(batch: Sequence[Sequence[Stage]], engine: Engine) -> bool:
    """Do workers run this batch? A single stage runs here with all threads, unless the engine has other machines."""
    return _independent(batch[0]) and (len(batch) > 1 or engine.elsewhere)


def _what(due: Sequence[Stage]) -> str:
    first = due[0]
    if tasks := sum(layout.kind_of(stage.name) is layout.Kind.SCORE for stage in due):
        return f"{first.what} on {tasks} tasks" + (" and the guard set" if tasks < len(due) else "")
    return first.what if len(due) == 1 else f"{first.what} and {len(due) - 1} more"


def _await(folder: Path) -> None:
    """Wait until a stage that another machine has put in place is seen here: network file systems take a while."""
    for _ in range(_SEEN_WITHIN):
        with suppress(OSError):
            os.listdir(folder.parent)  # has a network file system look again
        if manifest.read(folder) is not None:
            return
        time.sleep(1)
    raise CpiftError(f"{folder}: a worker has made it, but it is not seen here; all nodes must see it under one path")


def log(out: Path, event: Mapping[str, object]) -> None:
    """Append one line to ``log.jsonl``."""
    with RunLayout(out).log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **event}) + "\n")


def _check_room(current: Run, due: Sequence[Stage]) -> None:
    """Raise :class:`CpiftError` where the disk cannot hold the models that the stages will write, in fp32."""
    first = due[0]
    models = sum(stage.writes_model and "adapter" not in stage.settings for stage in due)
    if not models or first.name == layout.BASE:
        return
    needed = int(models * open_checkpoint(current.base.path).total * 4 * 1.05)
    free = shutil.disk_usage(current.out).free
    if free < needed:
        raise CpiftError(
            f"{first.name}: needs {needed / 1e9:.1f} GB in {current.out}, the disk has {free / 1e9:.1f} GB free; make room first"
        )
