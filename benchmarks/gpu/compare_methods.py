"""``cpift compare`` as a step: which methods, on which rows, so that three seeds fit the time.

--what table: at equal tokens. stitching: what can be made of the same probes without training. arrivals: a small model.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from five_sets import BATCH, MAX_LENGTH, SETS
from inputs import has_plain_answers, model_needs, set_names
from shared_card import Comparison, default_jobs, watch
from step import ROOT, Skip, Step, is_cuda, need, run
from whole_run import NEEDS, task_of

RATE = 1e-4  # of every method
TRAIN, EVAL, FEWEST = 2000, 300, 50  # rows of a set: at most, to score, at least
SEEDS = (0, 1, 2)
# On one card several trainings side by side, each mostly waiting for its processor: how much of that is gained.
GAIN = 0.6
STITCHED = "cpi_ft_no_refine:backbone.from=pretrained,region.percent={},fuse.weight=0"
BEST = "cpi_ft:backbone.from=pretrained,region.percent={},fuse.weight=0,refine.data=mixed"
MERGES = ("soup", "task_arithmetic", "ties", "dare_ties")
TABLE = ("cpi_ft", BEST.format(10), BEST.format(5), "multi_task", "multi_stage_replay", STITCHED.format(10))
STITCHING = (*(STITCHED.format(p) for p in (10, 3, 1, 5, 20)), "single_task")
ARRIVALS = ("sequential_replay", "cpi_ft_sequential", "sequential", "cpi_ft_sequential:fuse.weight=0.75")
SKILLS = ("reverse", "sort", "shift", "swap", "inner")
UNITS = 30  # seeds of the arrivals, at most


def methods_of(what: str, merges: bool) -> list[str]:
    """Those of a table; of the merges, where they can be made."""
    if what == "arrivals":
        return list(ARRIVALS)
    chosen = TABLE if what == "table" else STITCHING
    return [*chosen, *(MERGES if merges else ())]


def work(step: Step, what: str) -> None:
    need(*NEEDS, *model_needs(step), "cpift.compare.record")
    from cpift.compare.merging import mergekit
    from cpift.errors import CpiftError

    assert step.results is not None
    out = step.results / what
    try:
        merges = bool(what != "arrivals" and mergekit())
    except CpiftError as error:
        merges = False
        step.record.leave_out("merges", str(error).partition(";")[0])
    methods = methods_of(what, merges)
    seeds: Sequence[int] = range(1, UNITS + 1) if what == "arrivals" else SEEDS
    if step.tiny:
        methods, seeds = (methods[:2] if what == "arrivals" else [methods[1], "multi_task"]), (0,)
    jobs = min(default_jobs(step, is_cuda()), len(seeds))
    (step.scratch / f"{what}-seeds").mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    link(out / "seeds", step.scratch / f"{what}-seeds")  # weights, which do not stay
    try:
        recipe = out / "recipe.yaml"
        if recipe.is_file():
            step.record.add("rows of each set", "as of the call before", note="it resumes")
        elif what == "arrivals":
            recipe = _skills(step, out)
        else:
            recipe = _sets(step, what, out, methods, len(seeds), jobs)
        step.record.add("seeds side by side", jobs)
        budget = {"table": "equal_tokens", "stitching": "paper", "arrivals": "incremental"}[what]
        comparison = Comparison(recipe, out, methods, seeds, budget, methods[0], jobs)
        watch(step, comparison, 0.97 * step.left())
    finally:
        (out / "seeds").unlink()
        for part in ("check", "logs"):
            shutil.rmtree(out / part, ignore_errors=True)


def link(name: Path, target: Path) -> None:
    """Have ``name`` point to ``target``, whatever it pointed to."""
    if name.is_symlink():
        name.unlink()
    name.symlink_to(target, target_is_directory=True)


def _sets(step: Step, what: str, out: Path, methods: Sequence[str], seeds: int, jobs: int) -> Path:
    """The recipe on the sets that are given, with as many rows as the time allows by a measured plan."""
    if step.model is None:
        raise Skip("needs --model, which was not given")
    names = set_names(step, SETS)
    from cpift import Recipe, plan

    place = out / "rows"
    place.mkdir(exist_ok=True)
    train, evaluate = (16, 4) if step.tiny else (TRAIN, EVAL)
    if not step.tiny:
        whole = recipe_of(step, place, names, train, evaluate)
        planned = plan(Recipe.parse({**whole, "model": str(step.model)}), measure=True)
        train = rows_that_fit(planned, train, cost_of(what, methods), len(methods), seeds, jobs, 0.9 * step.left())
    step.record.add("rows of each set", train, note=f"{evaluate} to score; {len(names)} sets: {', '.join(names)}")
    recipe = Recipe.parse(recipe_of(step, place, names, train, evaluate))
    file = out / "recipe.yaml"
    file.write_text(recipe.dump(), encoding="utf-8")
    return file


def recipe_of(step: Step, place: Path, names: Sequence[str], train: int, evaluate: int) -> dict[str, Any]:
    """Five real sets: exact match where the rows have plain answers, else the loss."""
    assert step.data is not None
    tasks = {}
    for name in names:
        tasks[name] = task_of(step.data / name, place, train, evaluate)
        if not (has_plain_answers(step.data / name) or "pattern" in tasks[name]):
            tasks[name]["metric"] = "loss"
    batch = 4 if step.tiny else BATCH
    return {
        "model": str(step.model),
        "tasks": tasks,
        "refine": {"examples_per_task": max(4, train // 10)},
        "training": {"max_length": MAX_LENGTH, "per_device_train_batch_size": batch, "learning_rate": RATE},
    }


def cost_of(what: str, methods: Sequence[str]) -> float:
    """Trainings of a seed, in whole runs of cpi_ft: all merges and specialists share one set of longer probes."""
    if what == "stitching":
        return 0.5  # the probes alone, about half of a run
    names = [method.partition(":")[0] for method in methods]
    shared = any(name in (*MERGES, "single_task") for name in names)
    own = [m for m in methods if m.partition(":")[0] not in (*MERGES, "single_task")]
    return float(len(set(own) | {"cpi_ft"}) + shared)


def rows_that_fit(
    planned: Mapping[str, Any], rows: int, cost: float, models: int, seeds: int, jobs: int, seconds: float
) -> int:
    """Training rows of a set, so that all seeds fit the time.

    Args:
        planned: a measured plan of cpi_ft with ``rows`` rows.
        rows: the most.
        cost: trainings of a seed, in runs of cpi_ft.
        models: that are scored for each seed.
        seeds: how many.
        jobs: of them side by side.
        seconds: that may be used.
    """
    measured = planned["measured"]
    each = measured["train_overhead_seconds"] + measured["finish_seconds"]
    stages = sum(part["stages"] for part in planned["stages"] if "steps" in part)
    trained = sum(part["seconds"] for part in planned["stages"] if "steps" in part)
    scoring = models * planned["evaluate_seconds"] / planned["evaluated_models"]
    gained = 1.0 if jobs == 1 else max(1.0, GAIN * jobs)
    for_one = seconds * gained / seeds
    fixed = cost * each * stages + scoring
    share = max(0.0, for_one - fixed) / max(cost * (trained - each * stages), 1e-6)
    return max(min(FEWEST, rows), min(rows, int(share * rows)))


def _skills(step: Step, out: Path) -> Path:
    """A small model, pre-trained here, and the rows of five skills that arrive one after the other."""
    from cpift import Recipe

    if step.tiny:
        import tiny

        recipe = tiny.recipe(out / "rows", tasks=("reverse", "upper"))
    else:
        small = ROOT / "benchmarks" / "small"
        rows = out / "rows"
        commands = [[str(small / "skills.py"), str(rows)]]
        if not (out / "model" / "elicitation").is_dir():
            commands.append([str(small / "pretrain.py"), str(out / "model"), "--steps", "2000", "--device", _device()])
        for command in commands:
            subprocess.run([sys.executable, *command], check=True, env=os.environ)
        recipe = {
            "model": str(out / "model" / "elicitation"),
            "tasks": {
                skill: {part: str(rows / f"{skill}.{part}.jsonl") for part in ("train", "eval")} for skill in SKILLS
            },
            "probe": {"steps": 40},
            "refine": {"examples_per_task": 64},
            "training": {"per_device_train_batch_size": 16, "learning_rate": 3e-4, "max_length": 64},
        }
    file = out / "recipe.yaml"
    file.write_text(Recipe.parse(recipe).dump(), encoding="utf-8")
    return file


def _device() -> str:
    return "cuda" if is_cuda() else "cpu"


if __name__ == "__main__":
    at = sys.argv.index("--what")
    asked = sys.argv[at + 1]
    del sys.argv[at : at + 2]
    run(lambda step: work(step, asked))
