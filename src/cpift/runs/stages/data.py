"""Where a run begins: the base, where it must be converted, and the rows of each task."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpift.data.rows import answer_warnings, load_task, metric_of
from cpift.data.sources import file_settings
from cpift.data.store import write_jsonl
from cpift.files import layout, manifest
from cpift.runs.stage import Facts, Run, Stage
from cpift.train.models import convert_gguf

CODE = 1  # raise it when the same settings and inputs would give another result


def base_stage(run: Run) -> Stage:
    """Converts a GGUF file to a plain checkpoint."""
    file = run.given_base

    def convert(folders: Mapping[str, Path]) -> Facts:
        convert_gguf(file, folders[layout.BASE])
        return {layout.BASE: {}}

    settings = {"gguf": manifest.file_hash(file)}
    return Stage(layout.BASE, "probe", "convert the base model", settings, (), convert, writes_model=True, code=CODE)


def rows_stage(run: Run, task: str) -> Stage:
    """Reads, checks and splits the rows of a task."""
    asked, seed, name = run.recipe.tasks[task], run.recipe.seed, layout.rows(task)
    settings: dict[str, Any] = {"task": asked.settings(), "seed": seed}
    if asked.generate is None:
        settings["task"] |= file_settings(asked)
    else:
        settings["reasoning_gym"] = importlib.metadata.version("reasoning_gym")

    def load(folders: Mapping[str, Path]) -> Facts:
        rows = run.loaded.pop(task, None) or load_task(task, asked, seed)
        facts = {
            "train_rows": len(rows.train),
            "eval_rows": len(rows.evaluation),
            "metric": metric_of(task, asked, rows.evaluation),
            "shapes": rows.shapes,
            "sources": [asdict(source) for source in rows.sources],
        }
        for warning in [*rows.warnings, *answer_warnings(task, asked, rows.evaluation)]:
            run.add(warning.of(name))
        write_jsonl(folders[name] / layout.TRAIN_ROWS, rows.train)
        write_jsonl(folders[name] / layout.EVAL_ROWS, rows.evaluation)
        return {name: facts}

    return Stage(name, "probe", f"rows of {task}", settings, (), load, code=CODE)
