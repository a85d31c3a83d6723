"""Which GPUs a recipe needs: the formulas of ``memory.py`` for its batches, its longest row, its regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, get_args

from cpift.distributed import ranks
from cpift.errors import CpiftError
from cpift.planning import memory
from cpift.planning.memory import Shape, Sharding, Step
from cpift.recipe.recipe import Recipe


def per_gpu(recipe: Recipe, shape: Shape, longest: int, core: int, gpus: int) -> dict[str, Any]:
    """Bytes on each of ``gpus`` GPUs by sharding, for the training that takes most; of scoring; of main memory.

    Args:
        longest: tokens of the longest row.
        core: elements of a task's core region.

    Raises :class:`CpiftError` where a step's rows cannot be shared by so many, or the widths of the model are not known.
    """
    if not shape.hidden or not shape.vocabulary:
        raise CpiftError(
            "--gpus: the model's config.json names no hidden_size or vocab_size to reckon with; leave it out"
        )
    steps = {stage: _step(recipe, stage, longest, core, gpus) for stage in ("probe", "backbone", "refine")}
    found: dict[str, Any] = {"gpus": gpus, "training": {}}
    for sharding in get_args(Sharding):
        each = {stage: memory.training(shape, step, gpus, sharding) for stage, step in steps.items()}
        stage, most = max(each.items(), key=lambda item: item[1].peak)
        found["training"][sharding] = {
            **asdict(most),
            "stage": stage,
            "peak": most.peak,
            "fits": memory.fits(most.peak),
        }
    scoring = memory.scoring(shape, longest)
    return {
        **found,
        "scoring": {"peak": scoring, "fits": memory.fits(scoring)},
        "main": {
            "loading": memory.loading(shape, gpus),
            "identify": memory.identifying(core, len(recipe.tasks), 1),
            "fuse": memory.fusing(core, len(recipe.tasks), 1),
        },
    }


def _step(recipe: Recipe, stage: Any, longest: int, core: int, gpus: int) -> Step:
    from cpift.train.config import DEFAULTS

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
        frozen=frozen,
    )


def _synced(config: Any) -> bool:
    inner = config.get("gradient_accumulation_kwargs") if isinstance(config, dict) else None
    return bool((inner or {}).get("sync_each_batch", False))


def show(found: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Print it for people."""
    from cpift.console.terminal import size

    say(f"on {found['gpus']} GPUs, each:")
    for sharding, part in found["training"].items():
        say(f"  {sharding:13} {size(part['peak']):>8}  ({part['stage']}: {_parts(part)}); {cards(part['fits'])}")
    scoring = found["scoring"]
    say(
        f"  scoring       {size(scoring['peak']):>8}  (the first GPU alone holds the model, in fp32); {cards(scoring['fits'])}"
    )
    main = found["main"]
    say(
        f"  main memory   {size(main['loading'])} as a training loads, if all GPUs are in one node; "
        f"identify {size(main['identify'])}, fuse {size(main['fuse'])}"
    )
    say("AdamW and transformers of the Llama kind are assumed; formulas: docs/plan.md")


def _parts(part: Mapping[str, Any]) -> str:
    from cpift.console.terminal import size

    names = ("weights", "moments", "gradients", "buckets", "unsharded", "frozen", "copies", "activations", "logits")
    return ", ".join(f"{name} {size(part[name])}" for name in names if part[name])


def cards(fitting: list[int]) -> str:
    """In words: which of the common cards are large enough."""
    return (
        f"fits a card of {' or '.join(map(str, fitting))} GB"
        if fitting
        else f"fits no card up to {max(memory.CARDS)} GB"
    )
