"""How a run loads a model to score it: what the recipe sets, for the tasks and for the guard set alike."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from cpift.data.templates import ChatSettings
from cpift.runs.stage import ModelRef, Run


class Loading(TypedDict):
    """Arguments that :func:`cpift.evaluation.scores.evaluate` and :func:`cpift.evaluation.guard.score_guard` share."""

    trust_remote_code: bool
    chat: ChatSettings
    base: Path | None
    attention: str | None
    device_map: str | None
    dtype: str


def loading_of(run: Run, model: ModelRef) -> Loading:
    """How a model of a run is loaded.

    Args:
        run: its run.
        model: the model.
    """
    recipe = run.recipe
    return {
        "trust_remote_code": recipe.trust_remote_code,
        "chat": recipe.chat,
        "base": model.base,
        "attention": recipe.attn_implementation,
        "device_map": recipe.device_map,
        "dtype": recipe.evaluate.dtype,
    }
