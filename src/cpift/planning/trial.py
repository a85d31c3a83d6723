"""What the parts of a run take on this machine: each of them done once, short, on the recipe's own rows."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from cpift.checkpoint.reader import open_checkpoint
from cpift.data.encoding import Encoded
from cpift.evaluation.guard import read_guard, score_guard
from cpift.evaluation.opened import Opened
from cpift.evaluation.task import EvalTask
from cpift.evaluation.timing import measure_scoring
from cpift.files import manifest
from cpift.files.records import DeviceUse, Measured, MergingTrial, Preparation, ScoringTrial, TrainingTrial
from cpift.kernels.threads import core_count as threads
from cpift.method.fuse import fuse
from cpift.method.identify import identify
from cpift.planning.padding import padding
from cpift.recipe.recipe import Recipe
from cpift.runs.usage import peak_memory, reset_peak
from cpift.train import accelerator
from cpift.train.config import DEFAULTS, batch_rows, max_length
from cpift.train.fine_tune import fine_tune
from cpift.train.spec import TrainSpec

STEPS, WARM_UP = 12, 2  # the first ones are not timed, nor is the last
_IMPORTS = "import cpift.cli.main, cpift.runs.pipeline, cpift.runs.stages.graph, cpift.train.fine_tune, cpift.evaluation.scores, cpift.method.fuse"


def measure(
    recipe: Recipe,
    base: Path,
    encoded: Mapping[str, Sequence[Encoded]],
    tests: Mapping[str, EvalTask],
    scratch: Path,
    preparation: Preparation,
) -> Measured:
    """Seconds and peak memory of each kind of work, from a few steps, one checkpoint and a batch of each task.

    Args:
        recipe: the recipe.
        base: folder of the base model.
        encoded: training rows by task.
        tests: evaluation rows by task.
        scratch: an empty folder with room for three models in fp32.
        preparation: what the plan has timed before.
    """
    started = _import_seconds()
    accelerator.reset_peak()
    training = _training(recipe, base, encoded, scratch)
    merging = _merging(recipe, base, scratch)
    scoring = _scoring(recipe, scratch / "trial", tests)
    return {
        **training,
        **merging,
        **scoring,
        **preparation,
        **cast(DeviceUse, accelerator.used()),
        "start_seconds": started,
        "peak_memory": max(
            training["train_peak"], merging["identify_peak"], merging["fuse_peak"], scoring["score_peak"]
        ),
    }


def _import_seconds() -> float:
    """From the command to the first line of its work: a process of its own, as a run is."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True)
    return time.perf_counter() - began


def sample(encoded: Mapping[str, Sequence[Encoded]], batch: int, by_length: bool = True) -> list[Encoded]:
    """Rows of ``STEPS`` batches, in their order.

    The longest rows come first and last: they take the most memory, and more once memory is fragmented. Between them come
    batches of each task in turn, drawn from those that a training would make, so that their padding is the same.

    Args:
        encoded: training rows by task.
        batch: rows of a step.
        by_length: the training groups rows by length.
    """
    rng, queues = random.Random(0), []
    for rows in encoded.values():
        lengths = [len(row.input_ids) for row in rows]
        order = rng.sample(range(len(rows)), len(rows))
        if by_length:
            order = get_length_grouped_indices(lengths, batch, generator=torch.Generator().manual_seed(0))
        order = order * math.ceil(batch / len(order))
        order += order[: -len(order) % batch]
        batches = [order[i : i + batch] for i in range(0, len(order), batch)]
        queues.append(itertools.cycle([[rows[i] for i in one] for one in rng.sample(batches, len(batches))]))
    longest = sorted((row for rows in encoded.values() for row in rows), key=lambda row: -len(row.input_ids))
    longest = list(itertools.islice(itertools.cycle(longest), batch))
    between = [row for queue in itertools.islice(itertools.cycle(queues), STEPS - 2) for row in next(queue)]
    return longest + between + longest


def _training(recipe: Recipe, base: Path, encoded: Mapping[str, Sequence[Encoded]], scratch: Path) -> TrainingTrial:
    times: list[tuple[float, int]] = []
    folder = manifest.begin(scratch / "trial", "trial")
    training = {**DEFAULTS, **recipe.training_of("probe")}
    rows = sample(encoded, batch_rows(training), training["train_sampling_strategy"] == "group_by_length")
    training["train_sampling_strategy"] = "sequential"
    lengths, width = [len(row.input_ids) for row in rows], batch_rows(training)
    each = int(training["per_device_train_batch_size"])
    spec = TrainSpec(
        training,
        STEPS,
        recipe.seed,
        chat=recipe.chat,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attn_implementation,
        dtype=recipe.dtype,
        device_map=recipe.device_map,
    )
    reset_peak()
    began = time.perf_counter()
    trained = fine_tune(
        base,
        rows,
        folder,
        spec,
        tick=lambda event: times.append((time.perf_counter(), event["tokens"])),
    )
    took, peak = time.perf_counter() - began, peak_memory()
    (start, first), (end, last) = times[WARM_UP - 1], times[-2]
    speed = (last - first) / (end - start)
    began = time.perf_counter()
    manifest.finish(scratch / "trial", "trial", {}, {}, {})
    return {
        "train_tokens_per_second": speed,
        "train_padding": padding(lengths[width * WARM_UP : -width], each),
        "train_overhead_seconds": max(took - trained.tokens / speed, 0.0),  # load, make the trainer, warm up, save
        "finish_seconds": time.perf_counter() - began,
        "train_peak": peak,
    }


def _merging(recipe: Recipe, base: Path, scratch: Path) -> MergingTrial:
    """Identify and fuse with one task; both take time by the checkpoints that they read."""
    percent, tuned = str(recipe.region.percent), {"trial": scratch / "trial"}
    reset_peak()
    began = time.perf_counter()
    regions = identify(base, tuned, percent, include=recipe.region.include, exclude=recipe.region.exclude)
    identified, identify_peak = time.perf_counter() - began, peak_memory()
    reset_peak()
    began = time.perf_counter()
    fuse(base, tuned, scratch / "fused", regions=regions)
    fused, fuse_peak = time.perf_counter() - began, peak_memory()
    # A mapped file counts as memory of this process as it is read: of each further task one more, and its candidates.
    more = len(recipe.tasks) - 1
    nbytes = open_checkpoint(scratch / "trial").nbytes
    return {
        "identify_seconds": identified * (1 + len(recipe.tasks)) / 2,
        "fuse_seconds": fused * (2 + len(recipe.tasks)) / 3,
        "identify_peak": identify_peak + more * (nbytes + 16 * regions["trial"].count + 8 * 2**20 * threads()),
        "fuse_peak": fuse_peak + (more + (not recipe.backbone.is_base)) * nbytes,
    }


@accelerator.frees_memory
def _scoring(recipe: Recipe, model: Path, tests: Mapping[str, EvalTask]) -> ScoringTrial:
    reset_peak()
    opened, limit = Opened.by(recipe, model), max_length(recipe.training)
    loaded, rows = measure_scoring(opened, tests, limit)
    began = time.perf_counter()
    if recipe.guard:
        score_guard(opened, read_guard(recipe.guard, recipe.lm_eval_tasks), max_length=limit)
    return {
        "load_seconds": loaded,
        "row_seconds": rows,
        "guard_seconds": time.perf_counter() - began,
        "score_peak": peak_memory(),
    }
