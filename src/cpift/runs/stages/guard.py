"""The stage that scores a model on the neutral text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpift.evaluation.guard import digest, neutral_loss
from cpift.files import layout, manifest
from cpift.runs.identity import attention_of, settings_of
from cpift.runs.stage import Facts, ModelRef, Run, Stage

CODE = 1  # raise it when the same settings and inputs would give another result


def neutral_stage(run: Run, name: str, model: ModelRef) -> Stage:
    """Scores a model on the neutral text.

    Args:
        run: its run.
        name: what the model is called in ``scores.json``.
        model: the model.
    """
    stage = layout.neutral(name)
    settings: dict[str, Any] = {
        "text": digest(),
        **attention_of(run.recipe),
        **settings_of(model, "base" if model == run.base else "model"),
    }

    def score(folders: Mapping[str, Path]) -> Facts:
        result = neutral_loss(
            model.path,
            trust_remote_code=run.recipe.trust_remote_code,
            base=model.base,
            attention=run.recipe.attn_implementation,
            device_map=run.recipe.device_map,
        )
        (folders[stage] / layout.NEUTRAL_FILE).write_text(json.dumps(result))
        return {stage: {"loss": result["loss"], "precision": result["precision"]}}

    return Stage(stage, "evaluate", f"loss of {name} on the neutral text", settings, model.needs, score, code=CODE)


def losses(run: Run, models: list[str]) -> dict[str, float]:
    """Neutral loss of each model that has been scored."""
    found = {}
    for model in models:
        made = manifest.read(run.folder(layout.neutral(model)))
        if made is not None:
            found[model] = float(made.facts["loss"])
    return found
