"""Which GPUs a recipe needs: the formulas of ``memory.py`` for its batches, its longest row, its regions."""

from __future__ import annotations

from typing import Literal, get_args

from cpift.distributed import ranks
from cpift.errors import CpiftError
from cpift.files.records import GpuPlan, GpuTraining
from cpift.planning import memory
from cpift.planning.memory import Shape, Sharding, Step
from cpift.recipe.recipe import Recipe
from cpift.train.config import DEFAULTS

_Stage = Literal["probe", "backbone", "refine"]
STAGES: tuple[_Stage, ...] = get_args(_Stage)


def per_gpu(recipe: Recipe, shape: Shape, longest: int, core: int, gpus: int) -> GpuPlan:
    """Bytes on each GPU by sharding, for the training that takes most; of scoring; of main memory.

    Args:
        recipe: the recipe.
        shape: of the model.
        longest: tokens of the longest row.
        core: elements of a task's core region.
        gpus: how many GPUs share the work.

    Raises:
        CpiftError: a step's rows cannot be shared by as many GPUs, or the widths of the model are not known.
    """
    if not shape.hidden or not shape.vocabulary:
        raise CpiftError(
            "--gpus: the model's config.json names no hidden_size or vocab_size to calculate with; leave it out"
        )
    steps = {stage: _step(recipe, stage, longest, core, gpus) for stage in STAGES}
    trainings: dict[str, GpuTraining] = {}
    for sharding in get_args(Sharding):
        each = {stage: memory.training(shape, step, gpus, sharding) for stage, step in steps.items()}
        stage, most = max(each.items(), key=lambda item: item[1].peak)
        trainings[sharding] = {
            "weights": most.weights,
            "moments": most.moments,
            "gradients": most.gradients,
            "buckets": most.buckets,
            "unsharded": most.unsharded,
            "frozen": most.frozen,
            "copies": most.copies,
            "activations": most.activations,
            "logits": most.logits,
            "accumulates": most.accumulates,
            "stage": stage,
            "peak": most.peak,
            "fits": memory.fits(most.peak),
        }
    scoring = memory.scoring(shape, longest)
    return {
        "gpus": gpus,
        "training": trainings,
        "scoring": {"peak": scoring, "fits": memory.fits(scoring)},
        "main": {
            "loading": memory.loading(shape, gpus),
            "identify": memory.identifying(core, len(recipe.tasks), 1),
            "fuse": memory.fusing(core, len(recipe.tasks), 1),
        },
    }


def _step(recipe: Recipe, stage: _Stage, longest: int, core: int, gpus: int) -> Step:
    given = {**DEFAULTS, **recipe.training_of(stage)}
    rows, passes = ranks.share(
        int(given["per_device_train_batch_size"]),
        int(given.get("gradient_accumulation_steps", 1)),
        "training" if stage == "probe" else f"{stage}.training",
        gpus,
    )
    frozen = (len(recipe.tasks) - 1) * core if stage == "refine" and recipe.refine.freeze else 0
    return Step(
        tokens=rows * longest,
        bf16=bool(given.get("bf16", True)) or bool(given.get("fp16", False)),
        checkpointing=bool(given.get("gradient_checkpointing", given["activation_checkpointing"])),
        accumulates=passes > 1,
        synced=_synced(given.get("accelerator_config")),
        width=2 if recipe.dtype == "bfloat16" else 4,
        frozen=frozen,
    )


def _synced(config: object) -> bool:
    """Are gradients reduced after each pass? ``config`` is SFTConfig's ``accelerator_config``."""
    inner = config.get("gradient_accumulation_kwargs") if isinstance(config, dict) else None
    return bool(inner.get("sync_each_batch", False)) if isinstance(inner, dict) else False
