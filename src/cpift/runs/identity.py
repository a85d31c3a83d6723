"""What stands for a model, and for how it computes, in the key of a stage."""

from __future__ import annotations

from cpift.checkpoint.identity import checkpoint_identity, content_identity
from cpift.files import manifest
from cpift.recipe.recipe import Recipe
from cpift.runs.stage import ModelRef, Run


def attention_of(recipe: Recipe) -> dict[str, str]:
    """What stands for the kind of attention in the settings of a stage; nothing where the recipe leaves it open."""
    name = recipe.attn_implementation
    return {} if name is None else {"attn_implementation": name}


def settings_of(model: ModelRef, name: str) -> dict[str, str]:
    """What stands for a model in the settings of a stage that reads it.

    Args:
        model: the model.
        name: its key in the settings.

    Returns:
        Nothing for a model that a stage has made: that stage's digest counts as a need.
    """
    return {} if model.stage else {name: checkpoint_identity(model.path, model.base)}


def content_of(run: Run, model: ModelRef) -> str | None:
    """What stands for a model among all models: of one that a stage has made, the stage's digest and its base's.

    Args:
        run: the run.
        model: one of its models.

    Returns:
        None for the model of a stage that is not finished.
    """
    if not model.stage:
        return content_identity(model.path, model.base)
    made = manifest.read(run.folder(model.stage))
    if made is None:
        return None
    base = None if model == run.base else content_of(run, run.base)
    return made.digest if base is None else f"{made.digest}-{base}"
