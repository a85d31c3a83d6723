"""What can be known before a run: the model loads, every row can be read and encoded. Nothing is written here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from transformers import AutoConfig

from cpift.checkpoint.adapter import is_adapter
from cpift.checkpoint.align import align
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.hub import checkpoint_place
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import check_finite
from cpift.data.lengths import cut_warning
from cpift.data.row_checks import Row
from cpift.data.rows import load_task, metric_of
from cpift.distributed import ranks
from cpift.errors import CpiftError, nearest
from cpift.evaluation.backends import check_backend
from cpift.evaluation.guard import read_guard
from cpift.evaluation.harness import check_own_rows
from cpift.files import layout, manifest
from cpift.files.findings import Finding
from cpift.method.rehearsal import check_names
from cpift.method.scores import counted
from cpift.metrics import named
from cpift.recipe.backbones import BACKBONES
from cpift.recipe.recipe import Recipe
from cpift.runs.arrival_checks import check_carried, check_origin
from cpift.runs.given import GivenModel
from cpift.runs.stage import Run
from cpift.runs.stages.graph import first_stages
from cpift.runs.survey import measure, tokenizer_of
from cpift.train.adapters import check_adapter
from cpift.train.config import check_rows, max_length
from cpift.train.four_bit import check_four_bit
from cpift.train.limits import Rows, check_fits, check_generation, check_tokenizer, limits_of_place
from cpift.train.models import check_attention, check_model, check_stored_as_bf16, read_tokenizer
from cpift.train.orthogonal import check_osf
from cpift.typing import Tokenizer

_TRAINED: tuple[Literal["probe", "backbone", "refine"], ...] = ("probe", "backbone", "refine")


def check_models(recipe: Recipe) -> None:
    """Read the base, and a backbone that is given. Raises :class:`CpiftError` for what could not be trained or fused."""
    given = GivenModel.of(recipe)
    check_devices(recipe)
    check_backend(recipe.evaluate.backend, ranks.size(), recipe.probe.adapter is not None)
    if given.converted and recipe.dtype == "bfloat16":
        raise CpiftError(f"model.dtype: {given.path} is converted to float32, so bfloat16 would round it; leave it out")
    if not given.path.is_dir():
        return
    model, base = given.folder, given.opened()
    if recipe.dtype == "bfloat16":
        check_stored_as_bf16(base)
    counted(base.tensors, recipe.region.include, recipe.region.exclude)
    source = recipe.backbone.source
    if recipe.backbone.entry is None:
        near = nearest(source, BACKBONES)
        if near and not os.path.lexists(source):
            raise CpiftError(f"backbone: {source} is no checkpoint; did you mean {near!r}?")
        if given.beneath is not None and is_adapter(checkpoint_place(source)):
            raise CpiftError(
                f"backbone: {source} is an adapter, and so is the model; write it as a whole checkpoint first: cpift export"
            )
        backbone = open_checkpoint(checkpoint_place(source), base)
        check_compatible(base, {"the backbone": backbone})
        align(base, backbone)
    if recipe.arrivals:
        check_origin(recipe, given, base)
    if recipe.arrivals and recipe.arrivals.osf is not None:
        check_osf("arrivals.osf")
    if recipe.arrivals and recipe.protect.freeze:
        check_carried(base, given.folder)
    check_model(given.path, recipe.trust_remote_code, given.beneath)
    if recipe.attn_implementation is not None:
        check_attention(model, recipe.attn_implementation, recipe.trust_remote_code)
    check_names(base.beneath or base, recipe.trust_remote_code)
    for stage in (*recipe.stages_by_adapter, *(["arrivals"] if recipe.arrivals and recipe.arrivals.adapter else [])):
        check_four_bit(getattr(recipe, stage).adapter, f"{stage}.adapter")
    if recipe.probe.adapter is not None:
        check_adapter(recipe.probe.adapter, model, "probe.adapter", recipe.trust_remote_code)
    read_tokenizer(given.beside("tokenizer_config.json"), recipe.trust_remote_code, recipe.chat)
    check_router(recipe, model)
    check_finite(base)


def check_devices(recipe: Recipe) -> None:
    """Raise :class:`CpiftError` for a device_map with several processes, and for fp16 autocast over bf16 weights."""
    if recipe.device_map is not None and ranks.size() > 1:
        raise CpiftError(
            "model.device_map: spreads a model over the devices of one process, and there are "
            f"{ranks.size()}; leave it out, or start without a launcher"
        )
    if recipe.dtype == "bfloat16" and any(recipe.training_of(stage).get("fp16") for stage in _TRAINED):
        raise CpiftError("training.fp16: is not combined with model.dtype bfloat16; leave one of them out")


def read_rows(current: Run) -> None:
    """Load and encode the rows of the guard, and of every task that is not there yet; they are kept for the stage that stores them.

    Raises :class:`CpiftError` for the first row that could not be trained on, however far down it stands.
    """
    check_own_rows(current.recipe)
    for stage in first_stages(current):
        name = layout.parse(stage.name)
        made = manifest.read(current.folder(stage.name))
        if (
            name is None
            or name.kind is not layout.Kind.ROWS
            or (made is not None and made.key == manifest.key_of(stage.made_of, {}))
        ):
            continue
        task = name.task
        asked = current.recipe.tasks[task]
        if asked.generate is None:  # generated rows are sound, and take long
            current.loaded[task] = load_task(task, asked, current.recipe.seed)
            metric_of(task, asked, current.loaded[task].evaluation)
    recipe = current.recipe
    read_guard(recipe.guard, recipe.lm_eval_tasks)
    if current.loaded:
        tokenizer = tokenizer_of(recipe)
        limit = max_length(recipe.training_of("probe"))
        for task, rows in current.loaded.items():
            data = measure(task, recipe.tasks[task], rows, tokenizer, limit).data
            if (warning := cut_warning(task, data.train, limit)) is not None:
                current.show(warning)
            if named(data.metric).cuts_rows and (warning := cut_warning(task, data.evaluation, limit, evaluation=True)):
                current.show(warning)
        loaded = {task: (rows.train, rows.evaluation) for task, rows in current.loaded.items()}
        for warning in check_limits(recipe, current.given, tokenizer, loaded):
            current.show(warning)


def check_limits(
    recipe: Recipe, given: GivenModel, tokenizer: Tokenizer, loaded: Mapping[str, tuple[Sequence[Row], Sequence[Row]]]
) -> list[Finding]:
    """Compare the rows of each task with what the model has room for.

    Args:
        recipe: the recipe.
        given: the base.
        tokenizer: of the base.
        loaded: training and evaluation rows by task.

    Returns:
        Warnings.

    Raises:
        CpiftError: as :mod:`cpift.train.limits` does, and where all rows of a task would be dropped.
    """
    limits = limits_of_place(given.path, recipe.trust_remote_code, given.beneath)
    warnings = check_tokenizer(tokenizer, limits, recipe.training)
    rows = []
    for task, (train, evaluation) in loaded.items():
        asked = recipe.tasks[task]
        metric = metric_of(task, asked, list(evaluation))
        limit = max_length(recipe.training)
        rows.append(Rows(task, train, evaluation, named(metric), asked.max_new_tokens, limit, asked.answer_pattern))
        check_rows(len(train), recipe.training_of("probe"), f"tasks.{task} has")
        refined = min(len(train), recipe.refine.examples_per_task)
        check_rows(refined, recipe.training_of("refine"), f"refine.examples_per_task leaves tasks.{task}")
    generated = [held.task for held in rows if held.generates(tokenizer)]
    check_generation(given.beside("generation_config.json"), generated)
    for held in rows:
        warnings += check_fits(held, tokenizer, limits, held.task in generated)
    return warnings


def check_router(recipe: Recipe, model: Path) -> None:
    """Check the weight of a router's loss.

    Args:
        recipe: the recipe.
        model: folder of the base.

    Raises:
        CpiftError: a weight is given and the model has no router, TRL cannot compute this router's loss, or an anchor
            would leave it out.
    """
    weights = [recipe.training_of(stage).get("router_aux_loss_coef") for stage in _TRAINED]
    if recipe.arrivals:
        weights = [recipe.training_of("arrivals").get("router_aux_loss_coef")]
    config = AutoConfig.from_pretrained(model, trust_remote_code=recipe.trust_remote_code).get_text_config()
    if not hasattr(config, "output_router_logits"):
        if any(weights):
            raise CpiftError(f"training.router_aux_loss_coef: {config.model_type} has no router; leave it out")
        return
    if recipe.arrivals and recipe.protect.anchor and weights != [0]:
        raise CpiftError("protect.anchor: is not combined with a router's loss; set training.router_aux_loss_coef to 0")
    if (
        not recipe.arrivals
        and recipe.refine.anchor.kl
        and recipe.training_of("refine").get("router_aux_loss_coef") != 0
    ):
        raise CpiftError(
            "refine.anchor: is not combined with a router's loss; set refine.training.router_aux_loss_coef to 0"
        )
    own = getattr(config, "router_aux_loss_coef", 0.0)
    if not hasattr(config, "num_experts") and any(own if weight is None else weight for weight in weights):
        raise CpiftError(
            f"training.router_aux_loss_coef: TRL does not find the number of experts of {config.model_type}, which the "
            "router's loss needs; set training.router_aux_loss_coef to 0"
        )
