"""The method as stages: probe, identify, group, backbone, fuse, refine, evaluate, in terms of one run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cpift.checkpoint.hub import checkpoint_place
from cpift.method.region import Region
from cpift.method.zero_updates import zero_warnings
from cpift.runs.guard_stage import neutral_stage
from cpift.runs.stage import Run, Stage, base_needs, base_settings, probe_epochs, probe_steps, trained_stage

Facts = Mapping[str, Mapping[str, Any]]


def middle_stages(run: Run) -> list[Stage]:
    """Probes, regions and groups; the tasks' rows must be there."""
    steps = probe_steps(run)
    training = run.recipe.training_of("probe")
    base = (base_needs(run)[0] if base_needs(run) else "", run.base)
    probes = [
        trained_stage(run, f"01-probe/{t}", "probe", f"fine-tune the base on {t} alone", base, [t], training, steps)
        for t in run.tasks
    ]
    return [*probes, *[identify_stage(run, task) for task in run.tasks], _group(run)]


def last_stages(run: Run) -> list[Stage]:
    """Backbone, fusion, refinement and scores; the groups must be there."""
    groups = run.groups()
    assert groups is not None
    backbone = _backbone(run, groups)
    base = ("00-base" if base_needs(run) else "", run.base)
    if backbone:
        end = (backbone[-1].name, run.folder(backbone[-1].name))
    else:
        part = run.recipe.backbone
        end = base if part.is_base else ("", checkpoint_place(part.source))
    fused = _fuse(run, end)
    refined = _refine(run, groups, (fused.name, run.folder(fused.name)))
    models = {"base": base, **{f"probe/{t}": _at(run, f"01-probe/{t}") for t in run.tasks}}
    if end != base:
        models["backbone"] = end
    models["fused"] = _at(run, fused.name)
    models |= {f"refine/{k}": _at(run, stage.name) for k, stage in enumerate(refined, start=1)}
    scores = [stage for model, place in models.items() for stage in evaluate_stages(run, model, place)]
    scores += [neutral_stage(run, model, place) for model, place in models.items()]
    return [*backbone, fused, *refined, *scores]


def _at(run: Run, stage: str) -> tuple[str, Path]:
    return stage, run.folder(stage)


def identify_stage(run: Run, task: str) -> Stage:
    settings = {**region_settings(run), **base_settings(run)}
    needs = (*base_needs(run), f"01-probe/{task}")

    def select(folders: Mapping[str, Path]) -> Facts:
        names = {stage: stage.split("/", 1)[1] for stage in folders}
        tuned = {name: run.folder(f"01-probe/{name}") for name in names.values()}
        total = sum(_weight_bytes(folder) for folder in (run.base, *tuned.values()))
        bar = _Bytes(run, total)
        regions = select_regions(run, run.base, tuned, bar)
        facts = {}
        for stage, name in names.items():
            region = regions[name]
            region.save(folders[stage] / "region.safetensors")
            facts[stage] = region_facts(region)
            for text in region_warnings(name, region):
                run.warn(text)
        return facts

    return Stage(f"02-identify/{task}", "identify", f"core region of {task}", settings, needs, select, "identify")


def region_settings(run: Run) -> dict[str, Any]:
    """What decides about a region, apart from the two models."""
    part = run.recipe.region
    drawn = {"select": "random", "seed": run.recipe.seed} if part.select == "random" else {}
    return {"percent": str(part.percent), "exclude": part.exclude, **drawn}


def select_regions(
    run: Run, base: Path, tuned: Mapping[str, Path], progress: Callable[[int], None] = lambda nbytes: None
) -> dict[str, Region]:
    """The region of each task as the recipe wants it: where it moved most, or as many positions at random."""
    from cpift.method.identify import identify

    part = run.recipe.region
    found = identify(base, tuned, str(part.percent), exclude=part.exclude, progress=progress)
    if part.select == "largest":
        return found
    return {name: random_region(region, f"{run.recipe.seed}/{name}") for name, region in found.items()}


def random_region(like: Region, seed: str) -> Region:
    """As many positions of each parameter as ``like`` has, drawn at random: which matter, those moved most, or any?"""
    import numpy as np

    drawn, rng = {}, np.random.default_rng(list(seed.encode()))
    for name, positions in like.positions.items():
        size = math.prod(like.shapes[name])
        drawn[name] = np.sort(rng.choice(size, len(positions), replace=False)).astype(positions.dtype)
    return Region(drawn, like.total, shapes=like.shapes, base=like.base, statistics=like.statistics)


def region_facts(region: Region) -> dict[str, Any]:
    """What the report tells of a region: size, threshold to median, share of zero updates, counts per parameter."""
    return {
        "count": region.count,
        "total": region.total,
        "threshold": region.threshold,
        **region.statistics,
        "by_parameter": region.counts(),
        "sizes": {name: math.prod(shape) for name, shape in region.shapes.items()},
    }


def region_warnings(name: str, region: Region) -> list[str]:
    """What a user should know before trusting the region."""
    found = []
    if not region.count:
        found.append(f"{name}: the core region is empty; raise the percent")
    found += zero_warnings(name, region.statistics)
    if region.count and not region.threshold:
        found.append(f"{name}: fewer updates than the region holds are not zero; the rest was filled by position")
    return found


def _group(run: Run) -> Stage:
    part = run.recipe.group
    settings = {"threshold": part.threshold, "order": part.order, "seed": run.recipe.seed, "tasks": run.tasks}

    def compare(folders: Mapping[str, Path]) -> Facts:
        from cpift.method.group import group

        regions = {t: Region.load(run.folder(f"02-identify/{t}") / "region.safetensors") for t in run.tasks}
        found = group(regions, part.threshold, part.order, run.recipe.seed)
        (folders["03-group"] / "groups.json").write_text(json.dumps(found.to_dict(), indent=1))
        if len(found.groups) == 1:
            run.warn("all tasks are one group: the backbone is multi-task SFT, and refining freezes nothing")
        return {"03-group": {"stages": found.stages}}

    needs = tuple(f"02-identify/{t}" for t in run.tasks)
    return Stage("03-group", "group", "compare regions, group tasks", settings, needs, compare)


def _backbone(run: Run, groups: list[list[str]]) -> list[Stage]:
    parts = run.recipe.backbone.stages(groups, run.tasks)
    if not parts:
        return []
    from cpift.train.fine_tune import batch_rows

    training = run.recipe.training_of("backbone")
    rows = {task: run.facts(f"00-tasks/{task}")["train_rows"] for task in run.tasks}
    given = run.recipe.backbone.epochs
    epochs = probe_epochs(run) if given == "auto" else float(given)
    start = ("00-base" if base_needs(run) else "", run.base)
    stages: list[Stage] = []
    for k, tasks in enumerate(parts, start=1):
        steps = max(1, math.ceil(epochs * sum(rows[t] for t in tasks) / batch_rows(training) - 1e-9))
        what = f"backbone, stage {k} of {len(parts)}: {', '.join(tasks)}"
        stages.append(trained_stage(run, f"04-backbone/{k}", "backbone", what, start, tasks, training, steps))
        start = _at(run, stages[-1].name)
    return stages


def _fuse(run: Run, backbone: tuple[str, Path]) -> Stage:
    part = run.recipe.fuse
    settings: dict[str, Any] = {**part.model_dump(), "tasks": run.tasks, **base_settings(run)}
    needs = [*base_needs(run), *(f"{s}/{t}" for t in run.tasks for s in ("01-probe", "02-identify"))]
    if backbone[0] and backbone[0] not in needs:
        needs.append(backbone[0])
    elif not backbone[0] and backbone[1] != run.base:
        from cpift.runs.stage import checkpoint_identity

        settings["backbone"] = checkpoint_identity(backbone[1])

    def combine(folders: Mapping[str, Path]) -> Facts:
        tuned = {t: run.folder(f"01-probe/{t}") for t in run.tasks}
        regions = {t: run.folder(f"02-identify/{t}") / "region.safetensors" for t in run.tasks}
        reads = [run.base, backbone[1], *tuned.values()]
        report = fuse_stage(
            folders["05-fuse"], run.base, tuned, backbone=backbone[1], regions=regions if part.transplant else None,
            **part.model_dump(exclude={"transplant"}),
            progress=_Bytes(run, 2 * sum(_weight_bytes(folder) for folder in reads)),
        )  # fmt: skip
        for text in report.get("warnings", []):
            if text.startswith("the backbone") and not backbone[0]:  # one that was given, not trained here
                run.warn(text)
        return {"05-fuse": {key: value for key, value in report.items() if key != "tensors"}}

    return Stage(
        "05-fuse", "fuse", "fuse the probes into the backbone", settings, tuple(needs), combine, writes_model=True
    )


def fuse_stage(folder: Path, base: Path, tuned: Mapping[str, Path], **options: Any) -> dict[str, Any]:
    """:func:`cpift.method.fuse.fuse` into the folder of a stage, which holds a marker and so is not empty."""
    from cpift.method.fuse import fuse

    target = folder / "model"
    report = fuse(base, tuned, target, **options)
    for file in sorted(target.iterdir()):
        file.replace(folder / file.name)
    target.rmdir()
    return report


def _refine(run: Run, groups: list[list[str]], start: tuple[str, Path]) -> list[Stage]:
    from cpift.train.fine_tune import batch_rows

    part, training = run.recipe.refine, run.recipe.training_of("refine")
    stages: list[Stage] = []
    for k, tasks in enumerate(groups, start=1):
        seen = tasks if part.data == "group" else run.tasks
        rows = sum(min(part.examples_per_task, run.facts(f"00-tasks/{t}")["train_rows"]) for t in seen)
        steps = max(1, math.ceil(part.epochs * rows / batch_rows(training) - 1e-9))
        earlier = [t for members in groups[: k - 1] for t in members] if part.freeze else []
        what = f"refine, stage {k} of {len(groups)}: {', '.join(seen)}"
        if earlier:
            what += f"; frozen: {', '.join(earlier)}"
        stages.append(
            trained_stage(
                run,
                f"06-refine/{k}",
                "refine",
                what,
                start,
                seen,
                training,
                steps,
                examples=part.examples_per_task,
                draw=k if part.resample and part.data == "mixed" else 1,
                frozen=earlier,
            )
        )
        start = _at(run, stages[-1].name)
    return stages


def evaluate_stages(run: Run, model: str, place: tuple[str, Path]) -> list[Stage]:
    """Scores of a model (its name, and its stage or "" with its folder) on every task of the run."""
    from cpift.evaluation.scores import scoring_identity
    from cpift.train.fine_tune import max_length

    limit = max_length(run.recipe.training)
    folder_of = {f"07-evaluate/{model.replace('/', '-')}/{task}": task for task in run.tasks}

    def score(folders: Mapping[str, Path]) -> Facts:
        from cpift.evaluation.scores import evaluate

        tasks = {folder_of[stage]: eval_task(run, folder_of[stage]) for stage in folders}
        total, done = sum(len(t.rows) for t in tasks.values()), 0

        def tick(rows: int) -> None:
            nonlocal done
            done += rows
            run.reporter.progress(done, total, f"{done} of {total} rows")

        scores = evaluate(
            place[1],
            tasks,
            max_length=limit,
            progress=tick,
            trust_remote_code=run.recipe.trust_remote_code,
            chat=run.recipe.chat,
        )
        for stage, folder in folders.items():
            (folder / "score.json").write_text(json.dumps(scores[folder_of[stage]].to_dict()))
        made = {stage: scores[folder_of[stage]] for stage in folders}
        return {
            stage: {"score": score.score, "precision": score.precision, "left_out": score.left_out}
            for stage, score in made.items()
        }

    stages = []
    for name, task in folder_of.items():
        asked = run.recipe.tasks[task]
        settings: dict[str, Any] = {
            "metric": run.facts(f"00-tasks/{task}")["metric"], "max_length": limit, "pattern": asked.pattern, "max_new_tokens": asked.max_new_tokens,
        }  # fmt: skip
        settings |= {**run.recipe.chat.identity(), **scoring_identity(asked, settings["metric"])}
        needs = [f"00-tasks/{task}"]
        if place[0]:
            needs.append(place[0])
        elif place[1] == run.base:
            settings |= base_settings(run)
        else:
            from cpift.runs.stage import checkpoint_identity

            settings["model"] = checkpoint_identity(place[1])
        what = f"score {model}"
        stages.append(Stage(name, "evaluate", what, settings, tuple(needs), score, f"evaluate/{model}"))
    return stages


def eval_task(run: Run, task: str) -> Any:
    """What :func:`cpift.evaluation.scores.evaluate` needs for a task of the run."""
    from cpift.evaluation.scores import EvalTask

    asked = run.recipe.tasks[task]
    metric = run.facts(f"00-tasks/{task}")["metric"]
    return EvalTask.of(asked, run.rows(task, "eval"), metric)


def _weight_bytes(folder: Path) -> int:
    from cpift.checkpoint.reader import open_checkpoint

    return open_checkpoint(folder).nbytes


class _Bytes:
    """Turns counts of bytes into the run's progress, with throughput."""

    def __init__(self, run: Run, total: int) -> None:
        import time

        self._run, self._total, self._done, self._clock, self._began = (
            run,
            total,
            0,
            time.perf_counter,
            time.perf_counter(),
        )

    def __call__(self, nbytes: int) -> None:
        self._done += nbytes
        speed = self._done / max(self._clock() - self._began, 1e-9)
        self._run.reporter.progress(self._done, self._total, f"{self._done / 1e9:.2f} GB, {speed / 1e9:.2f} GB/s")
