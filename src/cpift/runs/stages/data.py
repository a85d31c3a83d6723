"""Where a run begins: the base, where it must be converted or merged, and the rows of each task."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpift.checkpoint.identity import adapter_identity, content_identity
from cpift.checkpoint.whole import write_whole
from cpift.console.progress import Counter
from cpift.data.rows import answer_warnings, load_task, metric_of
from cpift.data.sources import file_settings
from cpift.data.store import write_jsonl
from cpift.files import layout, manifest
from cpift.runs.given import GivenModel
from cpift.runs.stage import Facts, Run, Stage
from cpift.train.models import convert_gguf

CODE = 1  # raise it when the same settings and inputs would give another result


def base_stage(run: Run) -> Stage:
    """Writes a GGUF file, or an adapter with its base, as a plain checkpoint in float32."""
    given = run.given
    if given.beneath is not None:
        return _merged_stage(run, given, given.beneath)

    def convert(folders: Mapping[str, Path]) -> Facts:
        convert_gguf(given.path, folders[layout.BASE])
        return {layout.BASE: {}}

    settings = {"gguf": manifest.file_hash(given.path)}
    return Stage(layout.BASE, "probe", "convert the base model", settings, (), convert, writes_model=True, code=CODE)


def _merged_stage(run: Run, given: GivenModel, beneath: Path) -> Stage:
    """As ``cpift export ADAPTER`` writes it, to the bit."""

    def merge(folders: Mapping[str, Path]) -> Facts:
        model, folder = given.opened(), folders[layout.BASE]
        target = folder / "model"  # the stage's folder holds a marker, and so is not empty
        shutil.rmtree(target, ignore_errors=True)  # of a run that was killed between here and the end
        write_whole(model, target, progress=Counter(run.reporter, model.nbytes))
        for file in sorted(target.iterdir()):
            file.replace(folder / file.name)
        target.rmdir()
        return {layout.BASE: {}}

    settings = {"adapter": adapter_identity(given.path), "base": content_identity(beneath)}
    what = "merge the adapter into its base"
    return Stage(layout.BASE, "probe", what, settings, (), merge, writes_model=True, code=CODE)


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
