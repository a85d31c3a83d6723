"""One method with one seed: a run folder of its own, whose finished stages other methods of the seed take over."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpift.compare.draws import DRAWS
from cpift.compare.merging import merge
from cpift.console.reporter import Reporter
from cpift.data.mixture import pooled_rows
from cpift.files import layout, manifest
from cpift.files.layout import RunLayout
from cpift.method.criteria import Needs
from cpift.method.region import Region
from cpift.metrics.guard import guard_record
from cpift.metrics.score import GuardRecord, Scores
from cpift.recipe.recipe import Recipe
from cpift.recipe.stages import Fuse
from cpift.runs.arrival_rows import rows_of_share
from cpift.runs.executor import Runner
from cpift.runs.identity import settings_of
from cpift.runs.refine_rows import replayed_pass
from cpift.runs.stage import Facts, ModelRef, Run, Stage
from cpift.runs.stages.evaluate import guard_stages, task_stage
from cpift.runs.stages.fuse import CODE as FUSE_CODE
from cpift.runs.stages.fuse import fuse_into
from cpift.runs.stages.graph import first_stages, last_stages, middle_stages
from cpift.runs.stages.guard import guard_entry
from cpift.runs.stages.identify import core_stage, identify_stage, region_facts
from cpift.runs.stages.train import spec_of, train_stage
from cpift.runs.steps import probe_epochs, row_tokens
from cpift.train.averaging import Averaging
from cpift.train.config import batch_rows


class Work:
    """What the methods are written in: train, merge, score, count tokens.

    Args:
        recipe: with the method's own settings and seed.
        out: folder of the method.
        shared: folders whose finished stages may be taken over.
        reporter: receives progress.
        tokens: training tokens that the method may see in all; None: as many as the paper gives it.
    """

    def __init__(
        self, recipe: Recipe, out: Path, shared: Sequence[Path], reporter: Reporter, tokens: float | None
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        manifest.write_whole(RunLayout(out).recipe, recipe.dump())
        self.run = Run(recipe, out, reporter, shared=tuple(p for p in shared if p != out))
        self.tokens = tokens
        self.trained: list[str] = []
        self._runner = Runner(self.run)
        self._lengths: dict[str, float] = {}
        self._scored: tuple[str, ModelRef] | None = None
        self._runner.make(first_stages(self.run))

    @property
    def base(self) -> ModelRef:
        """The model that all start from."""
        return self.run.base

    @property
    def budget(self) -> float:
        """Training tokens that the method may see in all."""
        return self.tokens if self.tokens is not None else self.paper_tokens(self.tasks)

    @property
    def tasks(self) -> list[str]:
        """Names, in the recipe's order."""
        return self.run.tasks

    def probe(self) -> dict[str, ModelRef]:
        """Fine-tune the base on each task alone; find regions and groups."""
        self._runner.make(middle_stages(self.run))
        self.trained += [layout.probe(task) for task in self.tasks]
        return {task: self.run.model(layout.probe(task)) for task in self.tasks}

    def cpi_ft(self, refine: bool = True) -> ModelRef:
        """The whole method, as the recipe has it, or all but its last stage; the model it ends with."""
        self.probe()
        stages = last_stages(self.run)
        made = [s for s in stages if s.kind in ("backbone", "fuse") or (refine and s.kind == "refine")]
        self._runner.make(made)
        self.trained += [layout.region(task) for task in self.tasks if _scores_rows(self.run.recipe)]
        self.trained += [s.name for s in made if s.kind != "fuse"]
        return self.run.model(made[-1].name)

    def make(self, stage: Stage) -> ModelRef:
        """Make one stage of any kind."""
        self._runner.make([stage])
        return self.run.model(stage.name)

    def train(
        self,
        name: str,
        start: ModelRef,
        tasks: list[str],
        tokens: float,
        *,
        replay: Mapping[str, int] | None = None,
        replay_share: float | None = None,
        frozen: list[str] | None = None,
        kept: Sequence[str] = (),
        inside: Sequence[str] = (),
        anchor: float = 0.0,
        average: Averaging | None = None,
        unaveraged: Sequence[str] = (),
        trainable: str | None = None,
        osf: float | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> ModelRef:
        """Fine-tune on the rows of some tasks for a number of tokens.

        Args:
            name: of the stage.
            start: the model that is fine-tuned.
            tasks: whose rows are trained on.
            tokens: that the training may see.
            replay: rows to draw from each earlier task.
            replay_share: of all rows; None: about half.
            frozen: tasks whose cores stay as they are.
            kept: other stages whose regions stay as they are.
            inside: stages whose regions alone are trained; none: all that is not frozen.
            anchor: factor of the divergence from the model before, on the prompts.
            average: averages with the model before while training.
            unaveraged: stages whose regions are left out of these.
            trainable: shell-style pattern of the only parameters that are trained; None: all.
            osf: share of each matrix's directions that stays in PEFT's OSF; None: not by OSF.
            training: settings; None: those of the backbone.
        """
        settings = self.run.recipe.training_of("backbone") if training is None else training
        steps = self.steps(tokens, tasks, replay or {}, settings, replay_share)
        what = f"{name}: {', '.join(tasks)}" + (f"; replayed: {', '.join(replay)}" if replay else "")
        spec = spec_of(
            self.run,
            settings,
            steps,
            tuple(tasks),
            replay=replay or {},
            replay_share=replay_share if replay else None,
            frozen=(*map(layout.region, frozen or ()), *kept),
            inside=tuple(inside),
            anchor=anchor,
            average=average,
            unaveraged=tuple(unaveraged) if average else (),
            trainable=trainable,
            osf=osf,
        )
        stage = train_stage(self.run, name, "backbone", what, start, spec)
        self.trained.append(name)
        return self.make(stage)

    def add(self, name: str, task: str, probe: ModelRef, current: ModelRef) -> ModelRef:
        """Add a probe's update to the model so far, its core values transplanted."""
        what = f"add the update of {task} to the model so far"
        given = settings_of(self.base, "base")
        return self._fuse(name, what, task, probe, self.base, current, given, interpolation="sum")

    def blend(self, name: str, task: str, trained: ModelRef, before: ModelRef, earlier: Sequence[str] = ()) -> ModelRef:
        """From the model before to the one trained from it, as ``fuse`` of the recipe has it, the core transplanted.

        Args:
            name: of the stage.
            task: whose core is transplanted.
            trained: the model trained on it.
            before: the model that training started from.
            earlier: tasks whose cores the new one may not overwrite. With ``fuse.overlap: order`` it may: the last wins.
        """
        part, default = self.run.recipe.fuse, Fuse()
        what = f"interpolate the model so far and the one trained on {task}"
        options = {"vector": part.vector, "weight": part.weight}
        # Keys of earlier comparisons stand where these are what they were.
        options |= {
            key: getattr(part, key)
            for key in ("space", "interpolation", "overlap")
            if getattr(part, key) != getattr(default, key)
        }
        kept = tuple(earlier) if part.overlap != "order" else ()
        given = {"transplant": part.transplant}
        return self._fuse(name, what, task, trained, before, None, given, part.transplant, kept, **options)

    def _fuse(
        self,
        name: str,
        what: str,
        task: str,
        tuned: ModelRef,
        base: ModelRef,
        backbone: ModelRef | None,
        given: Mapping[str, Any],
        transplant: bool = True,
        kept: tuple[str, ...] = (),
        **options: Any,
    ) -> ModelRef:
        models = (base, tuned) if backbone is None else (base, tuned, backbone)
        needs = (*(stage for model in models for stage in model.needs), *map(layout.region, (task, *kept)))

        def combine(folders: Mapping[str, Path]) -> Facts:
            regions = {task: self._core_without(task, kept)} if transplant else {}
            start = backbone.path if backbone else None
            fuse_into(folders[name], base.path, {task: tuned.path}, backbone=start, regions=regions, **options)
            return {name: {}}

        settings = {"task": task, **options, **given}
        return self.make(Stage(name, "fuse", what, settings, needs, combine, writes_model=True, code=FUSE_CODE))

    def _core_without(self, task: str, kept: Sequence[str]) -> Region:
        """The core of a task without the positions of earlier cores."""
        core = Region.load(self.run.layout.region(task))
        for other in kept:
            core = core.without(Region.load(self.run.layout.region(other)))
        return core

    def merge(
        self, name: str, method: str, models: Mapping[str, ModelRef], parameters: Mapping[str, float]
    ) -> ModelRef:
        """Merge fine-tuned models of the base by mergekit: :func:`cpift.compare.merging.merge`."""
        return merge(self, name, method, models, parameters)

    def identify(self, task: str) -> ModelRef:
        """The core region of a task, from the base and its probe."""
        self.trained += [layout.region(task)] if _scores_rows(self.run.recipe) else []
        return self.make(identify_stage(self.run, task))

    def core_of(self, task: str, before: ModelRef, after: ModelRef) -> ModelRef:
        """The core region of a task from two models that follow one another, in place of base and probe."""
        self.trained += [layout.region(task)] if _scores_rows(self.run.recipe) else []
        return self.make(core_stage(self.run, layout.region(task), task, before, after, training="backbone"))

    def draw(self, kind: str, name: str) -> str:
        """Make a stage that draws a region of the base, by seed and name; returns the stage's name.

        Args:
            kind: one of :data:`cpift.compare.draws.DRAWS`.
            name: of the training that it is for.
        """
        way, recipe, stage = DRAWS[kind], self.run.recipe, f"{name}/region"

        def select(folders: Mapping[str, Path]) -> Facts:
            region = way.region(recipe, self.base.path, name)
            region.save(folders[stage] / layout.REGION_FILE)
            return {stage: region_facts(region)}

        settings = {"draw": kind, "name": name, "seed": recipe.seed, **way.settings(recipe)}
        settings |= settings_of(self.base, "base")
        self.make(Stage(stage, "identify", f"positions for {name}", settings, self.base.needs, select))
        return stage

    def region_tokens(self, tasks: Sequence[str], recipe: Recipe | None = None) -> float:
        """Tokens that the choice of core regions sees: a pass over training rows, or none.

        Args:
            tasks: whose regions.
            recipe: by whose criterion; None: this method's.
        """
        recipe = recipe or self.run.recipe
        if not _scores_rows(recipe):
            return 0.0
        rows = {task: min(self.rows(task), recipe.region.rows or self.rows(task)) for task in tasks}
        return sum(count * self.row_tokens(task) for task, count in rows.items())

    def replayed_tokens(self, groups: Sequence[Sequence[str]], recipe: Recipe) -> float:
        """Tokens of rows of earlier groups in one pass of all refine stages, as a recipe has them."""
        rows = {task: self.rows(task) for task in self.tasks}
        lengths = {task: self.row_tokens(task) for task in self.tasks if recipe.refine.replay}
        return sum(replayed_pass(recipe, rows, lengths, groups, number)[1] for number, _ in enumerate(groups, start=1))

    def score(self, model: str, place: ModelRef, tasks: Sequence[str] | None = None) -> Scores:
        """Scores of a model on the tasks, by default all."""
        wanted = list(tasks or self.tasks)
        if tasks is None:
            self._scored = model, place
        stages = [task_stage(self.run, model, place, task) for task in self.tasks if task in wanted]
        self._runner.make(stages)
        return {
            task: json.loads(self.run.layout.score(model, task).read_text()) for task in self.tasks if task in wanted
        }

    def guard(self) -> GuardRecord | None:
        """The guard set of the last model that was scored on all tasks, and of the base.

        None where there is no such model, or the recipe has no guard.
        """
        if self._scored is None or not self.run.recipe.guard:
            return None
        name, place = self._scored
        models = {layout.BASE_MODEL: self.base, name: place}
        self._runner.make(guard_stages(self.run, models))
        return guard_record(layout.BASE_MODEL, {model: guard_entry(self.run, model) for model in models})

    def spent(self, prefix: str = "") -> int:
        """Training tokens seen so far by stages whose names begin with ``prefix``, padding not counted."""
        return sum(self.run.facts(name)["tokens"] for name in dict.fromkeys(self.trained) if name.startswith(prefix))

    def seconds(self) -> float:
        """Time that the method's trainings took when they were made, shared ones included."""
        return float(sum(self.run.facts(name)["seconds"] for name in dict.fromkeys(self.trained)))

    def rows(self, task: str) -> int:
        """Number of training rows of a task."""
        return self.run.train_rows(task)

    def row_tokens(self, task: str) -> float:
        """Mean number of tokens of a training row."""
        if task not in self._lengths:
            self._lengths[task] = row_tokens(self.run, task, self.run.recipe.training)
        return self._lengths[task]

    def epoch_tokens(self, tasks: Sequence[str]) -> float:
        """Tokens of one pass over the tasks' rows."""
        return sum(self.rows(task) * self.row_tokens(task) for task in tasks)

    def pooled_tokens(self, groups: Sequence[Sequence[str]], examples: int | None = None) -> float:
        """Tokens of one pass over the rows of each group, pooled by the recipe's ``mix``.

        Args:
            groups: tasks that are trained together; each task once.
            examples: rows that each task has at most; None: all.
        """
        rows = {t: self.rows(t) if examples is None else min(examples, self.rows(t)) for g in groups for t in g}
        pooled: dict[str, int] = {}
        for group in groups:
            tokens = {t: rows[t] * self.row_tokens(t) for t in group}
            pooled |= pooled_rows({t: rows[t] for t in group}, tokens, self.run.recipe.mix)
        return sum(pooled[t] * self.row_tokens(t) for t in self.tasks if t in pooled)

    def paper_tokens(self, tasks: Sequence[str]) -> float:
        """As many passes over the rows as a probe makes over those of the mean task."""
        return probe_epochs(self.run) * self.epoch_tokens(tasks)

    def steps(
        self,
        tokens: float,
        tasks: list[str],
        replay: Mapping[str, int],
        training: Mapping[str, Any],
        replay_share: float | None = None,
    ) -> int:
        """Optimizer steps that see this number of tokens."""
        rows, total = sum(self.rows(t) for t in tasks), self.pooled_tokens([tasks])
        kept = {t: min(count, self.rows(t)) for t, count in replay.items()}
        if kept and replay_share is not None:
            again = rows_of_share(rows, replay_share)
            rows += again
            total += again * sum(count * self.row_tokens(t) for t, count in kept.items()) / sum(kept.values())
        elif kept:
            times = max(1, round(rows / sum(kept.values())))
            rows += times * sum(kept.values())
            total += times * sum(count * self.row_tokens(t) for t, count in kept.items())
        return max(1, round(tokens / total * math.ceil(rows / batch_rows(training))))


def _scores_rows(recipe: Recipe) -> bool:
    """Does the choice of core regions take a pass over training rows, so that its tokens count?"""
    return recipe.region.entry.needs is Needs.ROWS
