"""What can be known before an addition: the model's origin, its regions, and where the run is to lie."""

from __future__ import annotations

import math
from pathlib import Path

from cpift.checkpoint.align import align
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.hub import checkpoint_place
from cpift.checkpoint.names import plain_name
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import Checkpoint
from cpift.errors import CpiftError
from cpift.method.patch import check_name
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe
from cpift.runs.given import GivenModel, tuned_from
from cpift.runs.stages.arrivals import carried_regions, protected_by


def check_origin(recipe: Recipe, given: GivenModel, model: Checkpoint) -> None:
    """Compare the model of an addition with what it was fine-tuned from, where its update is to be protected.

    Args:
        recipe: the recipe, with arrivals.
        given: its model.
        model: the same, opened.

    Raises:
        CpiftError: the two do not belong together, or an update is asked for and nothing is known of its origin.
    """
    by = protected_by(recipe, given)
    if by == "update" and tuned_from(recipe, given) is None:
        raise CpiftError("protect.by: update needs base, the checkpoint that the model was fine-tuned from")
    if by != "update" and (recipe.base is None or given.beneath is not None):
        return
    try:
        origin = model.beneath or open_checkpoint(checkpoint_place(str(recipe.base), key="base"))
        check_compatible(origin, {"the model": model})
        align(origin, model)
    except CpiftError as error:
        remedy = "or leave base out" if given.beneath is None else "or set protect.by to none"
        text = str(error).replace("for a larger vocabulary: --vocabulary union", remedy)  # fuse's option
        raise CpiftError(f"base: {text}") from error


def check_place(recipe: Recipe, out: Path) -> None:
    """Refuse a run folder within the model, and a task that no patch can be called by. Raises :class:`CpiftError`."""
    model = Path(recipe.model)
    if model.is_dir() and out.resolve().is_relative_to(model.resolve()):
        raise CpiftError(f"{out}: lies within the model's own folder; choose another --out")
    if recipe.additions.train == "inside":
        for task in recipe.additions.order:
            check_name(task, "arrivals.train: inside")


def check_carried(model: Checkpoint, folder: Path) -> None:
    """Read the regions that a model carries.

    Args:
        model: the model.
        folder: where its regions lie.

    Raises:
        CpiftError: one that is damaged, or another model's.
    """
    shapes = {plain_name(name): tuple(tensor.shape) for name, tensor in model.tensors.items()}
    for file in carried_regions(folder).values():
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
