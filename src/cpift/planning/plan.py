"""``plan()``: what a run would cost, before anything starts."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cpift.checkpoint.align import excluded
from cpift.checkpoint.hub import locate
from cpift.checkpoint.reader import open_checkpoint
from cpift.data.encoding import Encoded
from cpift.data.mixture import pooled_rows
from cpift.data.row_checks import Row
from cpift.data.rows import load_task
from cpift.errors import CpiftError
from cpift.evaluation.scores import EvalTask
from cpift.method.identify import core_count
from cpift.planning import trial
from cpift.planning.gpus import per_gpu
from cpift.planning.gpus import show as show_gpus
from cpift.planning.memory import shape_of
from cpift.planning.padding import shuffled_padding
from cpift.recipe.recipe import Recipe
from cpift.runs.arrival_rows import arrival_steps, mixed_rows, replayed_rows
from cpift.runs.preflight import check_limits, check_models
from cpift.runs.survey import measure as measure_rows
from cpift.runs.survey import mixture, mixture_lines
from cpift.train.config import DEFAULTS, batch_rows, check_training, max_length
from cpift.train.models import convert_gguf, load_tokenizer
from cpift.train.sampling import KEY, with_sampling

TRAIN_BYTES = 16  # a parameter in fp32: weight, gradient, and AdamW's two moments
SAVED_BYTES = 12  # of a trainer's own checkpoint: weight and moments
_Trained = Literal["probe", "backbone", "refine"]
_TRAINED: tuple[_Trained, ...] = ("probe", "backbone", "refine")


def plan(recipe: Recipe, *, measure: bool = False, gpus: int | None = None) -> dict[str, Any]:
    """Trained and core parameters, steps, tokens, memory, disk, and with ``measure`` the time of a run.

    Every task is taken to be a group of its own: groups change the number of stages, hardly their sum.
    Memory in bytes is that of training in fp32 without activations, or with ``measure`` the peak of a short trial.
    ``gpus``: memory of each of so many GPUs too, by sharding. Writes nothing that stays.

    Raises :class:`CpiftError` for a recipe, data or model that cannot be used.
    """
    if gpus is not None and gpus < 1:
        raise CpiftError(f"--gpus {gpus}: is no number of GPUs")
    for stage in _TRAINED:
        check_training(recipe.training_of(stage), f"{stage}.training")
    began = time.perf_counter()
    check_models(recipe)
    model = locate(recipe.model, recipe.revision, recipe.trust_remote_code)
    with tempfile.TemporaryDirectory(prefix="cpift-plan-") as scratch:
        base = model
        if model.suffix == ".gguf":
            base = Path(scratch) / "base"
            convert_gguf(model, base)
        prepared = time.perf_counter() - began  # the run checks and converts as well
        return _plan(recipe, base, model.suffix == ".gguf", measure, gpus, prepared, Path(scratch))


def _plan(
    recipe: Recipe, base: Path, converted: bool, measure: bool, gpus: int | None, prepared: float, scratch: Path
) -> dict[str, Any]:
    checkpoint, tokenizer = open_checkpoint(base), load_tokenizer(base, recipe.trust_remote_code, recipe.chat)
    skipped = excluded(checkpoint.tensors, recipe.region.exclude)
    counted = sum(t.size for n, t in checkpoint.tensors.items() if n not in skipped)
    core = core_count(str(recipe.region.percent), counted)
    limit = max_length(recipe.training)
    rows, encoded, tests, data, scored, warnings = {}, {}, {}, {}, 0, list[str]()
    held: dict[str, tuple[Sequence[Row], Sequence[Row]]] = {}
    loading = encoding = 0.0
    for name, task in recipe.tasks.items():
        began = time.perf_counter()
        loaded = load_task(name, task, recipe.seed)
        loading, began = loading + time.perf_counter() - began, time.perf_counter()
        measured = measure_rows(name, task, loaded, tokenizer, limit)
        encoding += time.perf_counter() - began
        data[name], encoded[name], rows[name] = measured.data, measured.train, len(loaded.train)
        held[name] = loaded.train, loaded.evaluation
        warnings += measured.data.warnings
        scored += measured.data.evaluation.tokens
        tests[name] = EvalTask.of(task, loaded.evaluation, measured.data.metric)
    warnings += [warning.text for warning in check_limits(recipe, base, tokenizer, held)]
    lengths = {t: sum(len(e.input_ids) for e in kept) / len(kept) for t, kept in encoded.items()}
    parts = _trainings(recipe, rows, lengths)
    mixed = mixture(data, recipe.mix)
    tasks = len(rows)
    checkpoints = sum(part["stages"] for part in parts) + 1 + converted
    models = 2 + tasks + (not recipe.backbone.is_base) + tasks
    if recipe.arrivals:  # each leaves the trained and the averaged model
        checkpoints, models = 2 * len(parts) + converted, 1 + len(parts)
    result: dict[str, Any] = {
        "parameters": checkpoint.total,
        "counted": counted,
        "core": core,
        "stages": parts,
        "tokens": sum(p["tokens"] for p in parts),
        "evaluated_models": models,
        "evaluated_tokens": models * scored,
        "memory": checkpoint.total * TRAIN_BYTES,
        "disk": checkpoints * checkpoint.total * 4 + _saved(recipe, parts) * checkpoint.total * SAVED_BYTES,
        "checkpoints": checkpoints,
        "data": {name: task.to_dict() for name, task in mixed.items()},
        "mixture": mixture_lines(mixed, recipe.mix),
        "warnings": warnings,
    }
    if gpus is not None:
        shape = shape_of({n: t.size for n, t in checkpoint.tensors.items()}, checkpoint.config)
        longest = max(len(e.input_ids) for kept in encoded.values() for e in kept)
        result["gpus"] = per_gpu(recipe, shape, longest, core, gpus)
    if measure:
        found = trial.measure(recipe, base, encoded, tests, scratch)
        result["measured"] = found | {
            "prepare_seconds": prepared,
            "load_rows_seconds": loading,
            "encode_seconds": encoding,
        }
        result["memory"] = found["peak_memory"]
        slower = _more_padding(recipe, _pools(recipe, rows, lengths), encoded, found["train_padding"])
        _add_seconds(result, {t: len(test.rows) for t, test in tests.items()}, slower)
    return result


def _trainings(recipe: Recipe, rows: dict[str, int], lengths: dict[str, float]) -> list[dict[str, Any]]:
    """Stages, steps and tokens of each part of the run that trains; ``rows``, mean ``lengths``: of each task's training rows."""
    if recipe.arrivals:
        return _arrivals(recipe, rows, lengths)
    batch = {stage: batch_rows(recipe.training_of(stage)) for stage in _TRAINED}
    mean_rows = sum(rows.values()) / len(rows)
    auto = max(1, math.ceil(mean_rows / batch["probe"]))
    steps = auto if recipe.probe.steps == "auto" else int(recipe.probe.steps)
    epochs = steps * batch["probe"] / mean_rows
    passes = epochs if recipe.backbone.epochs == "auto" else float(recipe.backbone.epochs)

    def part(name: str, stage: _Trained, counts: list[tuple[int, float]]) -> dict[str, Any]:
        tokens = sum(number * batch[stage] * length for number, length in counts)
        return {"stage": name, "stages": len(counts), "steps": sum(n for n, _ in counts), "tokens": round(tokens)}

    def number(stage: _Trained, epochs: float, count: int) -> int:
        return max(1, math.ceil(epochs * count / batch[stage] - 1e-9))

    parts = [part(f"probe {t}", "probe", [(steps, lengths[t])]) for t in rows]
    pools = _pools(recipe, rows, lengths)

    def mean_length(pool: Mapping[str, int]) -> float:
        return sum(count * lengths[task] for task, count in pool.items()) / sum(pool.values())

    if recipe.backbone.trained and not recipe.backbone.mixes:
        parts.append(part("backbone", "backbone", [(number("backbone", passes, rows[t]), lengths[t]) for t in rows]))
    elif recipe.backbone.trained:
        pool = pools["backbone"]
        steps_of_all = number("backbone", passes, sum(pool.values()))
        parts.append(part("backbone", "backbone", [(steps_of_all, mean_length(pool))]))
    drawn = {t: min(recipe.refine.examples_per_task, rows[t]) for t in rows}
    if recipe.refine.data == "mixed":
        pool = pools["refine"]
        counts = [(number("refine", recipe.refine.epochs, sum(pool.values())), mean_length(pool))] * len(rows)
    else:
        counts = [(number("refine", recipe.refine.epochs, drawn[t]), lengths[t]) for t in rows]
    parts.append(part("refine", "refine", counts))
    return parts


def _pools(recipe: Recipe, rows: Mapping[str, int], lengths: Mapping[str, float]) -> dict[_Trained, dict[str, int]]:
    """Rows that each task gives to the stages that train on all tasks: by kind of stage, where there is one.

    Args:
        recipe: the recipe.
        rows: number of training rows by task.
        lengths: mean tokens of a row by task.
    """
    pools: dict[_Trained, dict[str, int]] = {}
    if recipe.backbone.mixes:
        pools["backbone"] = _pooled(recipe, rows, lengths)
    if recipe.refine.data == "mixed":
        few = {task: min(recipe.refine.examples_per_task, count) for task, count in rows.items()}
        pools["refine"] = _pooled(recipe, few, lengths)
    return pools


def _pooled(recipe: Recipe, rows: Mapping[str, int], lengths: Mapping[str, float]) -> dict[str, int]:
    return pooled_rows(rows, {task: count * lengths[task] for task, count in rows.items()}, recipe.mix)


def _more_padding(
    recipe: Recipe,
    pools: Mapping[_Trained, Mapping[str, int]],
    encoded: Mapping[str, Sequence[Encoded]],
    measured: float,
) -> dict[str, float]:
    """How much longer a token takes in stages that train on all tasks than in the trial, by kind of stage.

    Args:
        recipe: the recipe.
        pools: rows that each task gives, by kind of stage.
        encoded: training rows by task.
        measured: the padding of the trial.
    """
    factors = {}
    for stage, counts in pools.items():
        training = {**DEFAULTS, **with_sampling(recipe.training_of(stage), len(counts))}
        if training[KEY] == "random":
            batch = int(training["per_device_train_batch_size"])
            factors[str(stage)] = shuffled_padding(encoded, counts, batch) / measured
    return factors


def _arrivals(recipe: Recipe, rows: Mapping[str, int], lengths: Mapping[str, float]) -> list[dict[str, Any]]:
    """Steps and tokens of each arrival, replayed rows included."""
    assert recipe.arrivals is not None
    parts, batch = [], batch_rows(recipe.training_of("arrivals"))
    for number, task in enumerate(recipe.arrivals.order, start=1):
        steps, replay = arrival_steps(recipe, rows, number), replayed_rows(recipe, rows, number)
        new, kept = mixed_rows(recipe, rows, number)
        tokens = new * lengths[task]
        if kept:
            tokens += kept * sum(lengths[name] * count for name, count in replay.items()) / sum(replay.values())
        passes = steps / math.ceil((new + kept) / batch)
        parts.append({"stage": f"arrival {task}", "stages": 1, "steps": steps, "tokens": round(passes * tokens)})
    return parts


def _saved(recipe: Recipe, parts: list[dict[str, Any]]) -> int:
    """The trainer's own checkpoints that lie there at once, while a new one is written: none where a stage is short."""
    for part in parts:
        arrives = part["stage"].startswith("arrival ")
        given = recipe.training_of(
            "arrivals" if arrives else next(stage for stage in _TRAINED if part["stage"].startswith(stage))
        )
        every = given.get("save_steps", 500)
        if given.get("save_strategy", "steps") == "epoch" or part["steps"] / part["stages"] >= every > 1:
            return 2 if given.get("save_strategy", "steps") != "no" else 0
    return 0


def _add_seconds(result: dict[str, Any], tests: dict[str, int], slower: Mapping[str, float]) -> None:
    """The time of each part and of the whole, from what was measured.

    Args:
        result: the plan, to which seconds are added.
        tests: rows to score by task.
        slower: factors of the time of a token, by name of the part.
    """
    found, parts, models = result["measured"], result["stages"], result["evaluated_models"]
    for part in parts:
        made = part["stages"] * (found["train_overhead_seconds"] + found["finish_seconds"])
        each = slower.get(part["stage"], 1.0) / found["train_tokens_per_second"]
        part["seconds"] = part["tokens"] * each + made
    for name in ("identify", "fuse"):
        parts.append({"stage": name, "stages": 1, "seconds": found[f"{name}_seconds"]})
    parts[-1]["seconds"] += found["finish_seconds"]
    one = found["load_seconds"] + sum(found["row_seconds"][t] * count for t, count in tests.items())
    result["evaluate_seconds"] = models * (one + found["neutral_seconds"])
    # The rows are encoded as they are checked, again for the probes and for the backbone; the last model is hashed again.
    rest = found["load_rows_seconds"] + 3 * found["encode_seconds"] + found["finish_seconds"] + found["prepare_seconds"]
    result["other_seconds"] = found["start_seconds"] + rest
    result["seconds"] = sum(p["seconds"] for p in parts) + result["evaluate_seconds"] + result["other_seconds"]


def _data(task: dict[str, Any]) -> str:
    train, shapes = task["train"], ", ".join(task["shapes"]) or "generated"
    return (
        f"{train['rows']:,} rows, {train['tokens']:,} tokens, "
        f"the longest {train['longest']:,}, {train['cut_share']:.1%} cut; {shapes}"
    )


def show(result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print a plan for people."""
    from cpift.console.terminal import duration, size

    for text in result["warnings"]:
        say(f"warning: {text}")
    say(
        f"parameters   {result['parameters']:,} trained, {result['counted']:,} counted, {result['core']:,} core per task"
    )
    for name, task in result["data"].items():
        say(f"data         {name}: {_data(task)}")
    for line in result["mixture"]:
        say(f"{'mixture' if not line.startswith(' ') else '':12} {line}")
    for part in result["stages"]:
        took = f"  {duration(part['seconds'])}" if "seconds" in part else ""
        done = f"{part['steps']:,} steps, {part['tokens']:,} tokens" if "steps" in part else "no training"
        say(f"{part['stage']:12} {done}{took}")
    took = f"  {duration(result['evaluate_seconds'])}" if "evaluate_seconds" in result else ""
    say(f"evaluate     {result['evaluated_models']} models, {result['evaluated_tokens']:,} tokens{took}")
    how = "peak of a trial" if "measured" in result else "weights, gradients and AdamW in fp32; activations come on top"
    say(f"memory       {size(result['memory'])} ({how})")
    measured = result.get("measured", {})
    if "peak_device_memory" in measured:
        say(f"device       {size(measured['peak_device_memory'])} (peak of a trial on {measured['device']})")
    say(f"disk         {size(result['disk'])} ({result['checkpoints']} checkpoints in fp32)")
    if "seconds" in result:
        trial = result["measured"]
        say(f"start        rows, checks and the libraries  {duration(result['other_seconds'])}")
        say(f"time         {duration(result['seconds'])} ({trial['train_tokens_per_second']:.0f} tokens/s in training)")
    else:
        say("time         add --measure to time a few steps on this machine")
    if "gpus" in result:
        show_gpus(result["gpus"], say)
    say("Each task is taken as a group of its own; generated answers are not in the tokens, but in the time.")
