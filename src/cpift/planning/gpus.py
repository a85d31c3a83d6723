"""Which GPUs a recipe needs: the formulas of ``memory.py`` for its batches, its longest row, its regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from cpift.distributed import ranks
from cpift.errors import CpiftError
from cpift.files.records import GpuPlan, GpuTraining
from cpift.planning import memory
from cpift.planning.adapters import adapted, width_of
from cpift.planning.memory import Shape, Sharding, Step
from cpift.recipe.recipe import Recipe
from cpift.train.config import DEFAULTS

_Stage = Literal["probe", "backbone", "refine"]
STAGES: tuple[_Stage, ...] = get_args(_Stage)


def per_gpu(
    recipe: Recipe, shape: Shape, longest: int, core: int, gpus: int, shapes: Mapping[str, tuple[int, ...]]
) -> GpuPlan:
    """Bytes on each GPU by sharding, for the training that takes most; of scoring; of main memory.

    Args:
        recipe: the recipe.
        shape: of the model.
        longest: tokens of the longest row.
        core: elements of a task's core region.
        gpus: how many GPUs share the work.
        shapes: of the model's parameters by name; an adapter's size follows from them.

    Raises:
        CpiftError: a step's rows cannot be shared by as many GPUs, or the widths of the model are not known.
    """
    if not shape.hidden or not shape.vocabulary:
        raise CpiftError(
            "--gpus: the model's config.json names no hidden_size or vocab_size to calculate with; leave it out"
        )
    trained = [stage for stage in STAGES if stage != "backbone" or recipe.backbone.trained]
    steps = {stage: _step(recipe, stage, shapes, shape.layers, longest, core, gpus) for stage in trained}
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
            "stages": {name: part.peak for name, part in each.items()},
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


def _step(
    recipe: Recipe,
    stage: _Stage,
    shapes: Mapping[str, tuple[int, ...]],
    layers: int,
    longest: int,
    core: int,
    gpus: int,
) -> Step:
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
        width=width_of(recipe),
        frozen=frozen,
        adapter=adapted(getattr(recipe, stage).adapter, shapes, layers, width_of(recipe), merged=stage != "probe"),
    )


def _synced(config: object) -> bool:
    """Are gradients reduced after each pass? ``config`` is SFTConfig's ``accelerator_config``."""
    inner = config.get("gradient_accumulation_kwargs") if isinstance(config, dict) else None
    return bool(inner.get("sync_each_batch", False)) if isinstance(inner, dict) else False
