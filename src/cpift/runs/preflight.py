"""What can be known before a run: the model loads, every row can be read and encoded. Nothing is written here."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from transformers import AutoConfig

from cpift.checkpoint.align import align
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.hub import checkpoint_place, locate
from cpift.checkpoint.names import plain_name
from cpift.checkpoint.reader import open_checkpoint, open_plain
from cpift.checkpoint.stream import Checkpoint, check_finite
from cpift.data.lengths import cut_warning
from cpift.data.row_checks import Row
from cpift.data.rows import load_task, metric_of
from cpift.distributed import ranks
from cpift.errors import CpiftError, nearest
from cpift.evaluation.backends import check_backend
from cpift.evaluation.guard import read_guard
from cpift.files import layout, manifest
from cpift.files.findings import Finding
from cpift.method.patch import check_name
from cpift.method.region import Region
from cpift.method.rehearsal import check_names
from cpift.method.scores import counted
from cpift.metrics import named
from cpift.recipe.backbones import BACKBONES
from cpift.recipe.recipe import Recipe
from cpift.runs.stage import Run
from cpift.runs.stages.arrivals import carried_regions
from cpift.runs.stages.graph import first_stages
from cpift.runs.survey import measure, tokenizer_of
from cpift.train.adapters import check_adapter
from cpift.train.config import check_rows, max_length
from cpift.train.limits import Rows, check_fits, check_generation, check_tokenizer, limits_of_place
from cpift.train.models import check_attention, check_model, check_stored_as_bf16, load_tokenizer
from cpift.train.orthogonal import check_osf
from cpift.typing import Tokenizer

_TRAINED: tuple[Literal["probe", "backbone", "refine"], ...] = ("probe", "backbone", "refine")


def check_models(recipe: Recipe) -> None:
    """Read the base, and a backbone that is given. Raises :class:`CpiftError` for what could not be trained or fused."""
    model = locate(recipe.model, recipe.revision, recipe.trust_remote_code)
    check_devices(recipe)
    check_backend(recipe.evaluate.backend, ranks.size(), recipe.probe.adapter is not None)
    if not model.is_dir():
        if recipe.dtype == "bfloat16":
            raise CpiftError(f"model.dtype: {model} is converted to float32, so bfloat16 would round it; leave it out")
        return
    base = open_plain(model)
    if recipe.dtype == "bfloat16":
        check_stored_as_bf16(base)
    counted(base.tensors, recipe.region.include, recipe.region.exclude)
    source = recipe.backbone.source
    if recipe.backbone.entry is None:
        near = nearest(source, BACKBONES)
        if near and not os.path.lexists(source):
            raise CpiftError(f"backbone: {source} is no checkpoint; did you mean {near!r}?")
        backbone = open_checkpoint(checkpoint_place(source), base)
        check_compatible(base, {"the backbone": backbone})
        align(base, backbone)
    if recipe.base is not None:
        origin = open_checkpoint(checkpoint_place(recipe.base, key="base"))
        try:
            check_compatible(origin, {"the model": base})
            align(origin, base)
        except CpiftError as error:
            text = str(error).replace(
                "for a larger vocabulary: --vocabulary union", "or leave base out"
            )  # fuse's option
            raise CpiftError(f"base: {text}") from error
    if recipe.arrivals and recipe.arrivals.osf is not None:
        check_osf("arrivals.osf")
    if recipe.arrivals and recipe.protect.freeze:
        check_carried(base)
    check_model(model, recipe.trust_remote_code)
    if recipe.attn_implementation is not None:
        check_attention(model, recipe.attn_implementation, recipe.trust_remote_code)
    check_names(base, recipe.trust_remote_code)
    if recipe.probe.adapter is not None:
        check_adapter(recipe.probe.adapter, model, "probe.adapter", recipe.trust_remote_code)
    load_tokenizer(model, recipe.trust_remote_code, recipe.chat)
    check_router(recipe, model)
    check_finite(base)


def check_place(recipe: Recipe, out: Path) -> None:
    """Refuse a run folder within the model, and a task that no patch can be called by. Raises :class:`CpiftError`."""
    model = Path(recipe.model)
    if model.is_dir() and out.resolve().is_relative_to(model.resolve()):
        raise CpiftError(f"{out}: lies within the model's own folder; choose another --out")
    if recipe.additions.train == "inside":
        for task in recipe.additions.order:
            check_name(task, "arrivals.train: inside")


def check_devices(recipe: Recipe) -> None:
    """Raise :class:`CpiftError` for a device_map with several processes, and for fp16 autocast over bf16 weights."""
    if recipe.device_map is not None and ranks.size() > 1:
        raise CpiftError(
            "model.device_map: spreads a model over the devices of one process, and there are "
            f"{ranks.size()}; leave it out, or start without a launcher"
        )
    if recipe.dtype == "bfloat16" and any(recipe.training_of(stage).get("fp16") for stage in _TRAINED):
        raise CpiftError("training.fp16: is not combined with model.dtype bfloat16; leave one of them out")


def check_carried(model: Checkpoint) -> None:
    """Read the regions that a model carries. Raises :class:`CpiftError` for one that is damaged or another model's."""
    shapes = {plain_name(name): tuple(tensor.shape) for name, tensor in model.tensors.items()}
    for file in carried_regions(model.path).values():
        region = Region.load(file)
        for name, positions in region.positions.items():
            held = shapes.get(plain_name(name))
            shape = tuple(region.shapes.get(name, held or ()))
            if held is None:
                why = f"this one has no {name}"
            elif held != shape:
                why = f"{name} is {list(shape)} there, {list(held)} here"
            elif len(positions) and positions[-1] >= math.prod(held):
                why = f"{name} has a position {positions[-1]} there, {math.prod(held)} elements here"
            else:
                continue
            raise CpiftError(f"{file}: is of another model ({why}); remove it, or give the model that it belongs to")


def read_rows(current: Run) -> None:
    """Load and encode the rows of the guard, and of every task that is not there yet; they are kept for the stage that stores them.

    Raises :class:`CpiftError` for the first row that could not be trained on, however far down it stands.
    """
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
        model = locate(recipe.model, recipe.revision, recipe.trust_remote_code)
        for warning in check_limits(recipe, model, tokenizer, loaded):
            current.show(warning)


def check_limits(
    recipe: Recipe, model: Path, tokenizer: Tokenizer, loaded: Mapping[str, tuple[Sequence[Row], Sequence[Row]]]
) -> list[Finding]:
    """Compare the rows of each task with what the model has room for.

    Args:
        recipe: the recipe.
        model: folder or GGUF file of the base.
        tokenizer: of the base.
        loaded: training and evaluation rows by task.

    Returns:
        Warnings.

    Raises:
        CpiftError: as :mod:`cpift.train.limits` does, and where all rows of a task would be dropped.
    """
    limits = limits_of_place(model, recipe.trust_remote_code)
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
    check_generation(model, generated)
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
