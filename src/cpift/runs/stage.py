"""A run, its stages, and the models that pass between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpift.console.reporter import Reporter
from cpift.data.rows import TaskRows
from cpift.data.store import read_jsonl
from cpift.errors import CpiftError
from cpift.files import layout, manifest
from cpift.files.findings import Finding
from cpift.files.layout import RunLayout
from cpift.files.records import Facts as StageFacts
from cpift.recipe.recipe import Recipe
from cpift.runs.given import GivenModel

Facts = Mapping[str, Mapping[str, Any]]  # of each stage, by its name

# Given the folders to fill (by stage name), returns facts for each.
Action = Callable[[Mapping[str, Path]], Facts]


@dataclass(frozen=True)
class ModelRef:
    """A model.

    Attributes:
        path: the checkpoint's folder.
        stage: the stage that makes it; None for a model that comes from outside the run.
        base: where the model is an adapter, the checkpoint that it is applied to.
    """

    path: Path
    stage: str | None = None
    base: Path | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that must be there before the model can be read."""
        return () if self.stage is None else (self.stage,)


@dataclass(frozen=True)
class Stage:
    """One folder below ``stages/``.

    Attributes:
        name: of the folder (:mod:`cpift.files.layout`).
        kind: its place in the method, one of :data:`cpift.recipe.recipe.STAGES`.
        what: what it does, for people.
        settings: what decides about its result, apart from ``needs``. A change makes the stage again.
        needs: stages that it reads.
        action: makes it.
        together: stages with the same one that are due are made by one call.
        writes_model: does it write a checkpoint?
        trains: with all processes of the run.
        model: of a score, what the model is called in ``scores.json``.
        code: version of the code of its kind. It is part of the key from 2 on, so that a change makes the stage again.
    """

    name: str
    kind: str
    what: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...]
    action: Action
    together: str = ""
    writes_model: bool = False
    trains: bool = False
    model: str = ""
    code: int = 1

    @property
    def by_all(self) -> bool:
        """Do all processes of a run take part in it?"""
        return self.trains or layout.kind_of(self.name) in (layout.Kind.SCORE, layout.Kind.GUARD)

    @property
    def made_of(self) -> dict[str, Any]:
        """What decides about the result, apart from the needs: the settings, and the version of the code."""
        return {**self.settings, **({"code": self.code} if self.code > 1 else {})}


@dataclass
class Run:
    """A run's recipe and folder, and what is known so far.

    Attributes:
        recipe: its recipe.
        out: its folder.
        reporter: receives progress and warnings.
        findings: of the stages that were made or were there.
        shared: other run folders; a stage that one of them has made is taken over.
        loaded: rows that were read before their stage, kept until it stores them.
    """

    recipe: Recipe
    out: Path
    reporter: Reporter = field(default_factory=Reporter)
    findings: list[Finding] = field(default_factory=list)
    shared: tuple[Path, ...] = ()
    loaded: dict[str, TaskRows] = field(default_factory=dict)
    _shown: set[str] = field(default_factory=set)

    @property
    def layout(self) -> RunLayout:
        """The paths of the run folder."""
        return RunLayout(self.out)

    def folder(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.layout.stage(stage)

    def model(self, stage: str) -> ModelRef:
        """The model that a stage makes."""
        return ModelRef(self.folder(stage), stage, None if stage == layout.BASE else self.base.path)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the recipe's order."""
        return list(self.recipe.tasks)

    @property
    def given(self) -> GivenModel:
        """What the recipe's ``model`` names: a checkpoint, a GGUF file, or an adapter."""
        return GivenModel.of(self.recipe)

    @property
    def base(self) -> ModelRef:
        """θ⁰: the checkpoint as given, or the stage that converts the GGUF file or merges the adapter."""
        given = self.given
        return self.model(layout.BASE) if given.converted else ModelRef(given.path)

    def rows(self, task: str, part: str) -> Sequence[dict[str, Any]]:
        """``train`` or ``eval`` rows of a task whose stage is done."""
        return read_jsonl(self.layout.rows(task, part))

    def facts(self, stage: str) -> StageFacts:
        """Facts of a finished stage."""
        made = manifest.read(self.folder(stage))
        assert made is not None, stage
        return made.facts

    def train_rows(self, task: str) -> int:
        """Number of training rows of a task whose stage is done."""
        return self.facts(layout.rows(task))["train_rows"]

    def groups(self) -> list[list[str]] | None:
        """The stages' groups of tasks, once they are known."""
        file = self.layout.groups
        if manifest.read(file.parent) is None:
            return None
        try:
            grouping = json.loads(file.read_text())
            return [grouping["groups"][i] for i in grouping["order"]]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise CpiftError(f"{file}: is damaged ({error}); remove {file.parent} and run again to redo it") from error

    def add(self, finding: Finding) -> None:
        """Keep a finding of a stage, which writes it to its ``stage.json``; show it unless it was shown before."""
        if finding not in self.findings:
            self.findings.append(finding)
        self.show(finding)

    def show(self, finding: Finding) -> None:
        """Show a finding, once, before the stage that owns it is made."""
        if finding.text not in self._shown:
            self._shown.add(finding.text)
            self.reporter.warning(finding.text)
