"""A whole cpift run: does it end, seconds and device memory of each stage, scores beside a run on the processor.

Without --real on the tests' tiny model; with it on the model and two of the sets that are given, 200 rows each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs import Row, model_needs, read_rows, set_names
from step import Skip, Step, allocated, device, is_cuda, need, peak, release, reset_peak, run

NEEDS = (
    "trl:SFTTrainer",
    "datasets:Dataset",
    "pydantic",
    "yaml",
    "numba",
    "xxhash",
    "cpift:run",
    "cpift:FreezeCallback",
)
ROWS = (200, 50)  # of a set: to train on, to score
ONE_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # so small a model gains nothing from threads
ABOVE_FLOOR = 64 * 2**20  # bytes that libraries keep for themselves


@dataclass(frozen=True)
class Made:
    """A finished stage: bytes of the device above the floor after it, and at its peak."""

    kind: str
    name: str
    seconds: float
    above: int
    peak: int


def work(step: Step, real: bool) -> None:
    if real and step.model is None:
        raise Skip("needs --model, which was not given")
    if real:
        set_names(step)
    need(*NEEDS, *model_needs(step))
    from cpift import Recipe

    place = step.scratch / ("run-real" if real else "run-tiny")
    place.mkdir(parents=True, exist_ok=True)
    recipe = _real_recipe(step, place) if real else _tiny_recipe(place)
    file = place / "recipe.yaml"
    file.write_text(Recipe.parse(recipe).dump(), encoding="utf-8")
    scores, _ = watched(step, file, place / "out")
    if not real:
        _beside_cpu(step, file, place / "cpu", scores)


def _tiny_recipe(place: Path) -> dict[str, Any]:
    import tiny

    recipe: dict[str, Any] = tiny.recipe(place, tasks=("reverse", "upper"))
    recipe["training"].pop("bf16")  # as the device does it by itself
    recipe["tasks"]["upper"]["metric"] = "loss"  # so little training gets no answer right, here or there
    return recipe


def _real_recipe(step: Step, place: Path) -> dict[str, Any]:
    train, evaluate = (16, 4) if step.tiny else ROWS
    tasks = {}
    for name in set_names(step):
        assert step.data is not None
        tasks[name] = task_of(step.data / name, place, train, evaluate)
    # Each task a group of its own, so that the last stage freezes something.
    settings = {"group": {"threshold": 1.0}, "refine": {"examples_per_task": 64}, "training": {"max_length": 512}}
    return {"model": str(step.model), "tasks": tasks, **settings}


def task_of(folder: Path, place: Path, train: int, evaluate: int) -> dict[str, Any]:
    """A set as a task of a recipe, this many of its rows at most, copied to ``place``."""
    task: dict[str, Any] = {}
    for part, count in (("train", train), ("eval", evaluate)):
        rows = read_rows(folder / f"{part}.jsonl", count)
        task[part] = _copied(rows, place / f"{folder.name}.{part}.jsonl")
    if folder.name == "gsm8k":  # its answer is the last line of a longer text
        task["pattern"] = "#### (.+)"
    return task


def _copied(rows: list[Row], file: Path) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def watched(step: Step, file: Path, out: Path) -> tuple[dict[str, Any], list[Made]]:
    """Run the recipe here; each stage's seconds and device memory go to the record. Scores, and the stages."""
    from cpift import Recipe
    from cpift import run as run_recipe
    from cpift.console.reporter import Reporter

    made: list[Made] = []
    floor = _floor()

    class Watch(Reporter):
        """Measures each stage from outside, and prints it, so that the log says where a run was when it ended."""

        began = time.perf_counter()

        def stage(self, name: str, what: str) -> None:
            print(f"stage {name}", flush=True)
            self.began = time.perf_counter()
            reset_peak()

        def finished(self, name: str, facts: Mapping[str, Any]) -> None:
            kind = name.split("/")[0]
            if made and made[-1].kind != kind:
                _record_kind(step, made)
            seconds, most = time.perf_counter() - self.began, int(facts.get("peak_device_memory") or peak())
            made.append(Made(kind, name, seconds, allocated() - floor, most))
            print(made[-1], flush=True)

        def warning(self, text: str) -> None:
            print(f"warning: {text}", flush=True)

    began = time.perf_counter()
    result: dict[str, Any] = run_recipe(Recipe.load(file), out, reporter=Watch())
    _record_kind(step, made)
    step.record.add("whole run", time.perf_counter() - began, "s")
    if is_cuda():
        worst = max(made, key=lambda stage: stage.above)
        step.record.add("most above the floor after a stage", worst.above / 1e6, "MB", worst.name)
        step.record.add("device memory comes back to the floor", worst.above < ABOVE_FLOOR)
    for model, scores in result["models"].items():
        text = ", ".join(f"{task} {entry['score']:.3f} {entry['metric']}" for task, entry in scores.items())
        step.record.add(f"scores of {model}", text)
    step.record.add("groups", len(result["groups"]))
    return result, made


def _record_kind(step: Step, made: Sequence[Made]) -> None:
    """The stages of the last kind, in one line."""
    kind = made[-1].kind
    stages = [stage for stage in made if stage.kind == kind]
    note = f"{len(stages)} made" if len(stages) > 1 else ""
    if is_cuda():
        above, most = max(stage.above for stage in stages), max(stage.peak for stage in stages)
        note += f"; device memory {above / 1e6:.0f} MB above the floor after it, {most / 1e6:.0f} MB at its peak"
    step.record.add(f"stage {kind}", sum(stage.seconds for stage in stages), "s", note.removeprefix("; "))


def _floor() -> int:
    """Bytes on the device before the run, with what the matrix libraries take for themselves at their first use."""
    if not is_cuda():
        return 0
    import torch

    for kind in (torch.float32, torch.bfloat16):
        a = torch.randn(256, 256, device=device(), dtype=kind, requires_grad=True)
        (a @ a).sum().backward()
    del a
    release()
    return allocated()


def _beside_cpu(step: Step, file: Path, out: Path, scores: Mapping[str, Any]) -> None:
    """The same recipe by the command line, without the device: the largest difference of a score."""
    what = "largest difference of a score from the same run on a CPU"
    if not is_cuda():
        step.record.leave_out(what, "this was a CPU")
        return
    command = [sys.executable, "-m", "cpift.cli", "run", str(file), "--out", str(out)]
    try:
        done = subprocess.run(
            command, env={**os.environ, **ONE_CPU}, timeout=max(step.left(), 1.0),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        step.record.leave_out(what, "the run on the CPU took longer than the time left")
        return
    if done.returncode:
        print(done.stdout[-3000:], flush=True)
        step.record.fault(f"the run on the CPU ended with exit code {done.returncode}")
        return
    other = json.loads((out / "scores.json").read_text())["models"]
    differences = [
        (abs(entry["score"] - other[model][task]["score"]), f"{model} on {task}")
        for model, tasks in scores["models"].items()
        for task, entry in tasks.items()
    ]
    value, where = max(differences)
    step.record.add(what, value, note=where)


if __name__ == "__main__":
    is_real = "--real" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--real"]
    run(lambda step: work(step, is_real))
