"""The stages that score models on the guard set: what must not be lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cpift.evaluation.guard import guard_identity, read_guard, score_guard
from cpift.files import layout
from cpift.metrics.guard import GuardEntry, GuardRecord, guard_record
from cpift.recipe.guard import NEUTRAL
from cpift.runs.identity import attention_of, settings_of
from cpift.runs.loading import loading_of
from cpift.runs.stage import Facts, ModelRef, Run, Stage
from cpift.train.config import max_length

CODE = 1  # raise it when the same settings and inputs would give another result


def guard_stages(run: Run, models: Mapping[str, ModelRef]) -> list[Stage]:
    """Scores of models on the guard set; none where the recipe has no guard.

    Args:
        run: its run.
        models: by name; the first is the one that the others are compared with.
    """
    before = next(iter(models))
    return [guard_stage(run, name, model, before) for name, model in models.items()] if run.recipe.guard else []


def guard_stage(run: Run, name: str, model: ModelRef, before: str) -> Stage:
    """Scores a model on the guard set, and measures its drift from the model before.

    Args:
        run: its run.
        name: what the model is called in ``scores.json``.
        model: the model.
        before: name of the model that it is compared with; of that model itself, its own.
    """
    stage, first = layout.guard(name), layout.guard(before)
    drifts = any(entry.name == NEUTRAL for entry in run.recipe.guard)
    settings: dict[str, Any] = {
        "guard": guard_identity(run.recipe.guard, run.recipe.lm_eval_tasks),
        "max_length": max_length(run.recipe.training),
        **run.recipe.chat.identity(),
        **attention_of(run.recipe),
        **run.recipe.evaluate.identity(generates=False),
        **settings_of(model, "base" if model == run.base else "model"),
    }

    def score(folders: Mapping[str, Path]) -> Facts:
        record = folders[stage] / layout.LOGITS_FILE if drifts and stage == first else None
        result = score_guard(
            model.path,
            read_guard(run.recipe.guard, run.recipe.lm_eval_tasks),
            max_length=max_length(run.recipe.training),
            record=record,
            before=run.folder(first) / layout.LOGITS_FILE if drifts and stage != first else None,
            **loading_of(run, model),
        )
        (folders[stage] / layout.GUARD_FILE).write_text(json.dumps(result))
        facts: dict[str, Any] = {"guard": {name: entry["score"] for name, entry in result["scores"].items()}}
        return {stage: facts | ({"drift": result["drift"]["kl"]} if "drift" in result else {})}

    needs = (*model.needs, first) if drifts and stage != first else model.needs
    return Stage(stage, "evaluate", f"guard set of {name}", settings, needs, score, model=name, code=CODE)


def guard_of(run: Run, models: Sequence[str]) -> dict[str, GuardRecord]:
    """What ``scores.json`` holds of the guard, under its key; empty where the recipe has no guard.

    Args:
        run: its run, whose guard stages are done.
        models: names; the first is the one that the others are compared with.
    """
    if not run.recipe.guard:
        return {}
    return {"guard": guard_record(models[0], {name: guard_entry(run, name) for name in models})}


def guard_entry(run: Run, model: str) -> GuardEntry:
    """What the guard says of a model whose stage is done."""
    return cast(GuardEntry, json.loads(run.layout.guard(model).read_text()))
