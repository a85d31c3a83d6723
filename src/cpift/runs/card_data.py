"""The data block of a model card, by the hub's own classes: base, licence, languages, data sets and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard import metadata_load

from cpift.metrics import described
from cpift.metrics.score import Scores
from cpift.recipe.task import Task
from cpift.runs.stage import Run

_OF_BASE = ("license", "license_name", "license_link", "language")


def data_block(run: Run, tags: Sequence[str], scores: Scores | None = None, name: str = "cpi-ft") -> str:
    """YAML between its marks, as it begins a README of the hub.

    Args:
        run: what the model was made by.
        tags: of the model.
        scores: of the model by task, to be listed as its results.
        name: of the model, in the results.
    """
    model = run.recipe.model
    paths = {s.path for t in run.recipe.tasks.values() if t.generate is None for s in t.sources("train")}
    stated: dict[str, Any] = {"tags": list(tags), "datasets": sorted(path for path in paths if is_hub_id(path)) or None}
    if is_hub_id(model):
        stated["base_model"] = model.partition("@")[0]
    if scores:
        stated |= {"model_name": name, "eval_results": _results(run.recipe.tasks, scores)}
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", **stated_of_base(run.given.folder), **stated
    )
    return f"---\n{data.to_yaml()}\n---"


def stated_of_base(base: Path) -> dict[str, Any]:
    """Licence and languages as the base model's own card states them; empty where there is no such card."""
    try:
        found = metadata_load(base / "README.md") or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return {key: found[key] for key in _OF_BASE if isinstance(found.get(key), str | list)}


def is_hub_id(value: str) -> bool:
    """Is it ``owner/name``, and no path here?"""
    parts = value.split("/")
    return len(parts) == 2 and all(parts) and not value.startswith((".", "~")) and not Path(value).exists()


def _results(tasks: Mapping[str, Task], scores: Scores) -> list[EvalResult]:
    """One a task. The hub's class joins results that agree in all but the set's name; a config keeps them apart."""
    results: list[EvalResult] = []
    for name, score in scores.items():
        asked, kind = tasks[name], described(score["metric"])
        source = asked.train if isinstance(asked.train, str) and is_hub_id(asked.train) else None
        result = EvalResult(
            task_type="text-generation",
            dataset_type=source or ("generated" if asked.generate else "custom"),
            dataset_name=name,
            dataset_config=None if source else name,
            dataset_split=asked.eval_split if isinstance(asked.eval, str) and asked.eval == source else None,
            metric_type=kind.card_type,
            metric_value=round(score["score"], 6),
            metric_name=kind.label,
        )
        if any(result.unique_identifier == other.unique_identifier for other in results):
            result.dataset_config = name
        results.append(result)
    return results
