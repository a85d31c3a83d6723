"""The stages that score models on the guard set: what must not be lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from cpift.distributed import ranks
from cpift.distributed.sharing import of_run
from cpift.evaluation.guard import guard_identity, read_guard, score_guard
from cpift.evaluation.opened import Opened
from cpift.files import layout
from cpift.metrics.guard import GuardEntry, GuardRecord, guard_record
from cpift.recipe.guard import NEUTRAL
from cpift.runs.identity import attention_of, settings_of
from cpift.runs.stage import Action, ModelRef, Run, Stage
from cpift.train.config import max_length

CODE = 1  # raise it when the same settings and inputs would give another result


def guard_stage(run: Run, name: str, model: ModelRef, before: str, action: Action) -> Stage:
    """Scores a model on the guard set, and measures its drift from the model before.

    Args:
        run: its run.
        name: what the model is called in ``scores.json``.
        model: the model.
        before: name of the model that it is compared with; of that model itself, its own.
        action: makes it together with the scores of the model's tasks.
    """
    stage, first = layout.guard(name), layout.guard(before)
    settings: dict[str, Any] = {
        "guard": guard_identity(run.recipe.guard, run.recipe.lm_eval_tasks),
        "max_length": max_length(run.recipe.training),
        **run.recipe.chat.identity(),
        **attention_of(run.recipe),
        **run.recipe.evaluate.identity(generates=False),
        **settings_of(model, "base" if model == run.base else "model"),
    }
    needs = (*model.needs, first) if _drifts(run) and stage != first else model.needs
    what = f"guard set of {name}"
    return Stage(stage, "evaluate", what, settings, needs, action, f"evaluate/{name}", model=name, code=CODE)


def score_on_guard(run: Run, model: Opened, stage: str, folder: Path, before: str) -> dict[str, Any]:
    """Score a model on the guard set, the rows shared out over the processes of the run.

    Args:
        run: its run.
        model: the model.
        stage: name of the stage.
        folder: of the stage, to fill.
        before: as of :func:`guard_stage`.

    Returns:
        Facts of the stage; of no use in a process that does not lead.
    """
    first, drifts = layout.guard(before), _drifts(run)
    result = score_guard(
        model,
        read_guard(run.recipe.guard, run.recipe.lm_eval_tasks),
        max_length=max_length(run.recipe.training),
        record=folder / layout.LOGITS_FILE if drifts and stage == first else None,
        before=run.folder(first) / layout.LOGITS_FILE if drifts and stage != first else None,
        share=of_run(),
    )
    if ranks.leads():
        (folder / layout.GUARD_FILE).write_text(json.dumps(result))
    facts: dict[str, Any] = {"guard": {name: entry["score"] for name, entry in result["scores"].items()}}
    return facts | ({"drift": result["drift"]["kl"]} if "drift" in result else {})


def _drifts(run: Run) -> bool:
    return any(entry.name == NEUTRAL for entry in run.recipe.guard)


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
