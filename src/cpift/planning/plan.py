"""``plan()``: what a run would cost, before anything starts."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

from cpift.checkpoint.whole import write_whole
from cpift.data.encoding import Encoded
from cpift.data.mixture import pooled_rows
from cpift.data.row_checks import Row
from cpift.data.rows import load_task
from cpift.errors import CpiftError
from cpift.evaluation.guard import guard_tokens, read_guard
from cpift.evaluation.harness import check_own_rows
from cpift.evaluation.task import EvalTask
from cpift.files.records import PLAN_FORMAT, DataEntry, Measured, PlannedPart, PlanRecord, Preparation
from cpift.method.criteria import Needs
from cpift.method.identify import core_count
from cpift.method.scores import counted
from cpift.planning import trial
from cpift.planning.adapters import adapter_plan
from cpift.planning.gpus import per_gpu
from cpift.planning.memory import shape_of
from cpift.planning.padding import shuffled_padding
from cpift.recipe.recipe import Recipe
from cpift.runs.arrival_rows import arrival_steps, mixed_rows, mixed_tokens
from cpift.runs.given import GivenModel
from cpift.runs.preflight import check_limits, check_models
from cpift.runs.refine_rows import replayed_pass
from cpift.runs.survey import measure as measure_rows
from cpift.runs.survey import mixture, mixture_lines
from cpift.train.config import DEFAULTS, batch_rows, check_training, max_length
from cpift.train.models import convert_gguf, load_tokenizer
from cpift.train.sampling import KEY, with_sampling

TRAINED_COPIES = 4  # of a parameter: weight, gradient, and AdamW's two moments
FEW_STEPS = 10  # of a probe: in 4, of 8 rows each, SmolLM2-135M learnt nothing that could be measured
SAVED_COPIES = 3  # in a trainer's own checkpoint: weight and moments
_Trained = Literal["probe", "backbone", "refine"]
_TRAINED: tuple[_Trained, ...] = ("probe", "backbone", "refine")


def plan(recipe: Recipe, *, measure: bool = False, gpus: int | None = None) -> PlanRecord:
    """What a run costs: parameters, steps, tokens, memory, disk. Writes nothing that stays.

    Every task is taken to be a group of its own: groups change the number of stages, hardly their sum.
    Memory is that of training without activations, in bytes.

    Args:
        recipe: the recipe.
        measure: time a short trial on this machine. Memory is then the trial's peak.
        gpus: also the memory of each of this many GPUs, by sharding.

    Raises:
        CpiftError: the recipe, its data or its model cannot be used.
    """
    if gpus is not None and gpus < 1:
        raise CpiftError(f"--gpus {gpus}: is no number of GPUs")
    for stage in _TRAINED:
        check_training(recipe.training_of(stage), f"{stage}.training")
    began = time.perf_counter()
    check_models(recipe)
    given = GivenModel.of(recipe)
    with tempfile.TemporaryDirectory(prefix="cpift-plan-") as scratch:
        base = given
        if given.path.suffix == ".gguf":
            base = GivenModel(Path(scratch) / "base")
            convert_gguf(given.path, base.path)
        elif given.converted and measure:  # the trial trains it
            base = GivenModel(Path(scratch) / "base")
            write_whole(given.opened(), base.path)
        prepared = time.perf_counter() - began  # the run checks and converts as well
        return _plan(recipe, base, given.converted, measure, gpus, prepared, Path(scratch))


def _plan(
    recipe: Recipe, base: GivenModel, converted: bool, measure: bool, gpus: int | None, prepared: float, scratch: Path
) -> PlanRecord:
    checkpoint = base.opened()
    tokenizer = load_tokenizer(base.path, recipe.trust_remote_code, recipe.chat, base.beneath)
    kept = counted(checkpoint.tensors, recipe.region.include, recipe.region.exclude)
    total = sum(checkpoint.tensors[name].size for name in kept)
    core = core_count(str(recipe.region.percent), total)
    limit = max_length(recipe.training)
    rows, encoded, tests, data, scored, warnings = {}, {}, {}, {}, 0, list[str]()
    held: dict[str, tuple[Sequence[Row], Sequence[Row]]] = {}
    loading = encoding = 0.0
    check_own_rows(recipe)
    for name, task in recipe.tasks.items():
        began = time.perf_counter()
        loaded = load_task(name, task, recipe.seed)
        loading, began = loading + time.perf_counter() - began, time.perf_counter()
        task_rows = measure_rows(name, task, loaded, tokenizer, limit)
        encoding += time.perf_counter() - began
        data[name], encoded[name], rows[name] = task_rows.data, task_rows.train, len(loaded.train)
        held[name] = loaded.train, loaded.evaluation
        warnings += task_rows.data.warnings
        scored += task_rows.data.evaluation.tokens
        tests[name] = EvalTask.of(task, loaded.evaluation, task_rows.data.metric, recipe.lm_eval_tasks)
    warnings += [warning.text for warning in check_limits(recipe, base, tokenizer, held)]
    lengths = {t: sum(len(e.input_ids) for e in kept) / len(kept) for t, kept in encoded.items()}
    parts = _trainings(recipe, rows, lengths)
    if not recipe.arrivals and recipe.probe.steps == "auto" and parts[0]["steps"] < FEW_STEPS:
        warnings.append(
            f"probe.steps: auto is one pass over the rows, {parts[0]['steps']} steps a task; so few teach a model little: "
            "set probe.steps to more, such as 50"
        )
    mixed = mixture(data, recipe.mix)
    tasks = len(rows)
    checkpoints = sum(part["stages"] for part in parts) + 1 + converted
    adapter = None if recipe.arrivals else adapter_plan(recipe, checkpoint)
    if adapter is not None:
        checkpoints -= tasks
    models = 2 + tasks + (not recipe.backbone.is_base) + tasks
    if recipe.arrivals:  # each leaves the trained and the averaged model
        checkpoints, models = 2 * len(parts) + converted, 1 + len(parts)
    width = 2 if recipe.dtype == "bfloat16" else 4
    record: PlanRecord = {
        "format": PLAN_FORMAT,
        "parameters": checkpoint.total,
        "counted": total,
        "core": core,
        "stages": parts,
        "tokens": sum(p["tokens"] for p in parts),
        "evaluated_models": models,
        "evaluated_tokens": models * scored,
        "memory": checkpoint.total * (TRAINED_COPIES + _held_copies(recipe)) * width,
        "disk": checkpoints * checkpoint.total * width
        - (2 * tasks * checkpoint.total if recipe.output.probes == "updates" and not recipe.arrivals else 0)
        + (4 * tasks * adapter["parameters"] if adapter is not None else 0)
        + _saved(recipe, parts) * checkpoint.total * SAVED_COPIES * width,
        "checkpoints": checkpoints,
        "data": {name: cast(DataEntry, task.to_dict()) for name, task in mixed.items()},
        "mixture": mixture_lines(mixed, recipe.mix),
        "warnings": warnings,
    }
    if recipe.dtype != "float32":
        record["dtype"] = recipe.dtype
    if adapter is not None:
        record["adapter"] = adapter
    if recipe.region.entry.needs is Needs.ROWS:
        read = recipe.additions.order if recipe.arrivals else list(rows)
        record["region_tokens"] = round(sum(min(rows[t], recipe.region.rows or rows[t]) * lengths[t] for t in read))
    if recipe.guard:
        record["guard_tokens"] = guard_tokens(read_guard(recipe.guard, recipe.lm_eval_tasks), tokenizer)
    if gpus is not None:
        shape = shape_of({n: t.size for n, t in checkpoint.tensors.items()}, checkpoint.config)
        longest = max(len(e.input_ids) for kept in encoded.values() for e in kept)
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        record["gpus"] = per_gpu(recipe, shape, longest, core, gpus, shapes)
    if measure:
        preparation: Preparation = {
            "prepare_seconds": prepared,
            "load_rows_seconds": loading,
            "encode_seconds": encoding,
        }
        measured = trial.measure(recipe, base.path, encoded, tests, scratch, preparation)
        slower = _more_padding(recipe, _pools(recipe, rows, lengths), encoded, measured["train_padding"])
        _add_seconds(
            record, measured, {t: 1 if test.kind.brings_rows else len(test.rows) for t, test in tests.items()}, slower
        )
    return record


def _trainings(recipe: Recipe, rows: dict[str, int], lengths: dict[str, float]) -> list[PlannedPart]:
    """Stages, steps and tokens of each part of the run that trains.

    Args:
        recipe: the recipe.
        rows: number of training rows, by task.
        lengths: mean tokens of a row, by task.
    """
    if recipe.arrivals:
        return _arrivals(recipe, rows, lengths)
    batch = {stage: batch_rows(recipe.training_of(stage)) for stage in _TRAINED}
    mean_rows = sum(rows.values()) / len(rows)
    auto = max(1, math.ceil(mean_rows / batch["probe"]))
    steps = auto if recipe.probe.steps == "auto" else int(recipe.probe.steps)
    epochs = steps * batch["probe"] / mean_rows
    passes = epochs if recipe.backbone.epochs == "auto" else float(recipe.backbone.epochs)

    def part(name: str, stage: _Trained, counts: list[tuple[int, float]]) -> PlannedPart:
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
        groups, counts = [[t] for t in rows], []
        for place, t in enumerate(rows, start=1):
            again, tokens = replayed_pass(recipe, rows, lengths, groups, place)
            mean = (drawn[t] * lengths[t] + tokens) / (drawn[t] + again)
            counts.append((number("refine", recipe.refine.epochs, drawn[t] + again), mean))
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


def _arrivals(recipe: Recipe, rows: Mapping[str, int], lengths: Mapping[str, float]) -> list[PlannedPart]:
    """Steps and tokens of each arrival, replayed rows included."""
    parts: list[PlannedPart] = []
    batch = batch_rows(recipe.training_of("arrivals"))
    for number, task in enumerate(recipe.additions.order, start=1):
        steps = arrival_steps(recipe, rows, number)
        passes = steps / math.ceil(sum(mixed_rows(recipe, rows, number)) / batch)
        tokens = mixed_tokens(recipe, rows, lengths, number)
        parts.append({"stage": f"arrival {task}", "stages": 1, "steps": steps, "tokens": round(passes * tokens)})
    return parts


def _held_copies(recipe: Recipe) -> int:
    """Copies of the weights that a training holds: for an anchor, for averages while it trains, and for EWC, with what matters."""
    if not recipe.arrivals:
        return bool(recipe.refine.anchor.kl) + bool(recipe.fuse.every)
    part = recipe.protect
    return bool(part.anchor) + bool(part.every) + 2 * bool(part.ewc)


def _saved(recipe: Recipe, parts: list[PlannedPart]) -> int:
    """Trainer checkpoints on the disk at once, while a new one is written: none where stages are short."""
    for part in parts:
        arrives = part["stage"].startswith("arrival ")
        given = recipe.training_of(
            "arrivals" if arrives else next(stage for stage in _TRAINED if part["stage"].startswith(stage))
        )
        every = given.get("save_steps", 500)
        if given.get("save_strategy", "steps") == "epoch" or part["steps"] / part["stages"] >= every > 1:
            return 2 if given.get("save_strategy", "steps") != "no" else 0
    return 0


def _add_seconds(record: PlanRecord, measured: Measured, tests: Mapping[str, int], slower: Mapping[str, float]) -> None:
    """Add what was measured, and from it the time of each part and of the whole.

    Args:
        record: the plan.
        measured: by the trial.
        tests: rows to score by task; 1 where the metric has rows of its own.
        slower: factors of the time of a token, by name of the part.
    """
    parts, finish = record["stages"], measured["finish_seconds"]
    for part in parts:
        made = part["stages"] * (measured["train_overhead_seconds"] + finish)
        each = slower.get(part["stage"], 1.0) / measured["train_tokens_per_second"]
        part["seconds"] = part["tokens"] * each + made
    scored = record.get("region_tokens", 0) / measured["train_tokens_per_second"]  # a pass forward and back as well
    parts.append({"stage": "identify", "stages": 1, "seconds": measured["identify_seconds"] + scored})
    parts.append({"stage": "fuse", "stages": 1, "seconds": measured["fuse_seconds"] + finish})
    one = measured["load_seconds"] + sum(measured["row_seconds"][t] * count for t, count in tests.items())
    evaluate = record["evaluated_models"] * (one + measured["guard_seconds"])
    # The rows are encoded as they are checked, again for the probes and the backbone; the last model is hashed again.
    rows = measured["load_rows_seconds"] + 3 * measured["encode_seconds"]
    other = measured["start_seconds"] + rows + finish + measured["prepare_seconds"]
    record["measured"], record["memory"] = measured, measured["peak_memory"]
    record["evaluate_seconds"], record["other_seconds"] = evaluate, other
    record["seconds"] = sum(part["seconds"] for part in parts) + evaluate + other
