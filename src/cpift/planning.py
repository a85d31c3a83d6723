"""``plan()``: what a run would cost, before anything starts."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpift.checkpoint import excluded, open_checkpoint
from cpift.errors import CpiftError
from cpift.models import convert_gguf, load_tokenizer, locate
from cpift.recipe import Recipe
from cpift.selection import core_count
from cpift.tasks import load_rows, metric_of

TRIAL_STEPS = 6  # the first two warm up and are not counted
TRAIN_BYTES = 16  # a parameter in fp32: weight, gradient, and AdamW's two moments
LOAD_SECONDS = 3.0  # of a model, per stage, where nothing was measured


def plan(recipe: Recipe, *, measure: bool = False) -> dict[str, Any]:
    """Trained and core parameters, steps, tokens, memory, disk, and with ``measure`` the time of a run.

    Every task is taken to be a group of its own: groups change the number of stages, hardly their sum.
    Memory in bytes is that of training in fp32 without activations, or with ``measure`` the peak of a short trial.
    Writes nothing that stays.

    Raises :class:`CpiftError` for a recipe, data or model that cannot be used.
    """
    from cpift.preflight import check_models
    from cpift.training import check_training

    for stage in ("probe", "backbone", "refine"):
        check_training(recipe.training_of(stage), f"{stage}.training")
    check_models(recipe)
    model = locate(recipe.model)
    with tempfile.TemporaryDirectory(prefix="cpift-plan-") as scratch:
        base = model
        if model.suffix == ".gguf":
            base = Path(scratch) / "base"
            convert_gguf(model, base)
        return _plan(recipe, base, model.suffix == ".gguf", measure, Path(scratch))


def _plan(recipe: Recipe, base: Path, converted: bool, measure: bool, scratch: Path) -> dict[str, Any]:
    from cpift.encoding import encode_all
    from cpift.training import batch_rows, max_length

    checkpoint, tokenizer = open_checkpoint(base), load_tokenizer(base, recipe.trust_remote_code)
    skipped = excluded(checkpoint.tensors, recipe.region.exclude)
    counted = sum(t.size for n, t in checkpoint.tensors.items() if n not in skipped)
    limit = max_length(recipe.training)
    rows, lengths, scored, warnings, sample = {}, {}, 0, [], []
    for name, task in recipe.tasks.items():
        train, evaluation, told = load_rows(name, task, recipe.seed)
        metric_of(name, task, evaluation)
        warnings += told
        encoded, _ = encode_all(train, tokenizer, limit)
        if not encoded:
            raise CpiftError(f"tasks.{name}: no row has a trained part left; raise training.max_length")
        rows[name], lengths[name] = len(train), sum(len(e.input_ids) for e in encoded) / len(encoded)
        tested, _ = encode_all(evaluation, tokenizer, limit)
        scored += sum(len(e.input_ids) for e in tested)
        sample += encoded[:64]
    tasks, probe_batch = list(rows), batch_rows(recipe.training_of("probe"))
    mean_rows = sum(rows.values()) / len(rows)
    steps = recipe.probe.steps if recipe.probe.steps != "auto" else max(1, math.ceil(mean_rows / probe_batch))
    epochs = int(steps) * probe_batch / mean_rows
    back_batch, fine_batch = batch_rows(recipe.training_of("backbone")), batch_rows(recipe.training_of("refine"))
    parts: list[dict[str, Any]] = [
        {"stage": f"probe {t}", "steps": int(steps), "tokens": round(int(steps) * probe_batch * lengths[t])}
        for t in tasks
    ]
    if recipe.backbone.source in ("multi_stage", "multi_task"):
        counts = {t: math.ceil(epochs * rows[t] / back_batch - 1e-9) for t in tasks}
        tokens = sum(counts[t] * back_batch * lengths[t] for t in tasks)
        parts.append({"stage": "backbone", "steps": sum(counts.values()), "tokens": round(tokens)})
    drawn = {t: min(recipe.refine.examples_per_task, rows[t]) for t in tasks}
    stages = len(tasks) if recipe.refine.data == "mixed" else 1
    counts = {t: math.ceil(recipe.refine.epochs * drawn[t] / fine_batch - 1e-9) for t in tasks}
    parts.append(
        {
            "stage": "refine",
            "steps": stages * sum(counts.values()),
            "tokens": round(stages * sum(counts[t] * fine_batch * lengths[t] for t in tasks)),
        }
    )
    trained = (
        len(tasks) if recipe.backbone.source == "multi_stage" else 1 if recipe.backbone.source == "multi_task" else 0
    )
    checkpoints = len(tasks) + trained + 1 + len(tasks) + converted
    models = 1 + len(tasks) + (recipe.backbone.source != "pretrained") + 1 + len(tasks)
    result: dict[str, Any] = {
        "parameters": checkpoint.total,
        "counted": counted,
        "core": core_count(str(recipe.region.percent), counted),
        "stages": parts,
        "tokens": sum(p["tokens"] for p in parts),
        "evaluated_models": models,
        "evaluated_tokens": models * scored,
        "memory": checkpoint.total * TRAIN_BYTES,
        "disk": checkpoints * checkpoint.total * 4,
        "checkpoints": checkpoints,
        "warnings": warnings,
    }
    if measure:
        trial = _measure(recipe, base, sample, scratch)
        result["measured"] = trial
        result["memory"] = trial["peak_memory"]
        for part in parts:
            loads = 1 if part["stage"].startswith("probe") else len(tasks)
            part["seconds"] = part["tokens"] / trial["train_tokens_per_second"] + loads * trial["stage_seconds"]
        result["evaluate_seconds"] = (
            result["evaluated_tokens"] / trial["eval_tokens_per_second"] + models * trial["load_seconds"]
        )
        result["seconds"] = sum(part["seconds"] for part in parts) + result["evaluate_seconds"]
    return result


def _measure(recipe: Recipe, base: Path, sample: list[Any], scratch: Path) -> dict[str, float]:
    """Speed of training and scoring on this machine, from a few steps and batches."""
    import random

    from cpift.evaluation import measure_forward
    from cpift.making import peak_memory, reset_peak
    from cpift.training import fine_tune

    times: list[tuple[float, int]] = []
    random.Random(0).shuffle(sample)

    def tick(event: Any) -> None:
        times.append((time.perf_counter(), event["tokens"]))

    reset_peak()
    trained = fine_tune(
        base, sample, scratch / "trial", recipe.training_of("probe"), steps=TRIAL_STEPS, seed=recipe.seed, tick=tick,
        trust_remote_code=recipe.trust_remote_code,
    )  # fmt: skip
    peak = peak_memory()
    (start, first), (end, last) = times[1], times[-1]
    return {
        "train_tokens_per_second": (last - first) / (end - start),
        "eval_tokens_per_second": measure_forward(base, sample[:48], recipe.trust_remote_code),
        "load_seconds": trained.load_seconds,
        "stage_seconds": trained.load_seconds + trained.save_seconds,
        "peak_memory": peak,
    }


def show(result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print a plan for people."""
    from cpift.terminal import duration, size

    for text in result["warnings"]:
        say(f"warning: {text}")
    say(
        f"parameters   {result['parameters']:,} trained, {result['counted']:,} counted, {result['core']:,} core per task"
    )
    for part in result["stages"]:
        took = f"  {duration(part['seconds'])}" if "seconds" in part else ""
        say(f"{part['stage']:12} {part['steps']:,} steps, {part['tokens']:,} tokens{took}")
    took = f"  {duration(result['evaluate_seconds'])}" if "evaluate_seconds" in result else ""
    say(f"evaluate     {result['evaluated_models']} models, {result['evaluated_tokens']:,} tokens{took}")
    how = "peak of a trial" if "measured" in result else "weights, gradients and AdamW in fp32; activations come on top"
    say(f"memory       {size(result['memory'])} ({how})")
    say(f"disk         {size(result['disk'])} ({result['checkpoints']} checkpoints in fp32)")
    if "seconds" in result:
        trial = result["measured"]
        say(
            f"time         {duration(result['seconds'])} ({trial['train_tokens_per_second']:.0f} tokens/s in training, "
            f"{trial['eval_tokens_per_second']:.0f} in scoring)"
        )
    else:
        say("time         add --measure to time a few steps on this machine")
    say("Each task is taken as a group of its own; generated answers are not in the tokens.")
