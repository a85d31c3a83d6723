"""The stage that scores a model on the neutral text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpift.evaluation.guard import digest, neutral_loss
from cpift.files import layout, manifest
from cpift.runs.stage import Run, Stage, base_settings


def neutral_stage(run: Run, model: str, place: tuple[str, Path]) -> Stage:
    """The stage that scores a model (its name, and its stage or "" with its folder) on the neutral text."""
    name = layout.neutral(model)
    settings: dict[str, Any] = {"text": digest()}
    needs = (place[0],) if place[0] else ()
    if not place[0] and place[1] == run.base:
        settings |= base_settings(run)
    elif not place[0]:
        from cpift.runs.stage import checkpoint_identity

        settings["model"] = checkpoint_identity(place[1])

    def score(folders: Mapping[str, Path]) -> Mapping[str, Mapping[str, Any]]:
        found = neutral_loss(place[1], trust_remote_code=run.recipe.trust_remote_code)
        (folders[name] / layout.NEUTRAL_FILE).write_text(json.dumps(found))
        return {name: {"loss": found["loss"], "precision": found["precision"]}}

    return Stage(name, "evaluate", f"loss of {model} on the neutral text", settings, needs, score)


def losses(run: Run, models: list[str]) -> dict[str, float]:
    """Neutral loss of each model that has been scored."""
    found = {}
    for model in models:
        made = manifest.read(run.folder(layout.neutral(model)))
        if made is not None:
            found[model] = float(made.facts["loss"])
    return found
