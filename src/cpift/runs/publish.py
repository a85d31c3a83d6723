"""What a finished run leaves beside its stages: ``model/`` with its card, and ``scores.json``."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpift.checkpoint.convert import NAMES
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.whole import write_whole
from cpift.files import layout, manifest
from cpift.files.findings import distinct, finding
from cpift.metrics.score import Scores
from cpift.metrics.summary import summary
from cpift.runs.model_card import card
from cpift.runs.stage import Run, Stage
from cpift.runs.stages.guard import guard_of
from cpift.runs.trim import is_trimmed


def write_outcome(run: Run, stages: Sequence[Stage]) -> dict[str, Any]:
    """Gather the scores, put the last model in its place; returns what ``scores.json`` holds."""
    scores = scores_of(run, stages)
    result = {**outcome(run, scores), "groups": run.groups()}
    manifest.write_whole(run.layout.scores, json.dumps(result))
    last = [stage.name for stage in stages if stage.kind == "refine"][-1]
    publish(run, run.folder(last), card(run, result))
    return result


def outcome(run: Run, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """What ``scores.json`` of every kind of run holds."""
    if mixed := mixed_precision(scores):
        run.add(finding("two-precisions", mixed))
    return {
        "tasks": run.tasks,
        "models": scores,
        "summary": summary(scores, run.tasks),
        **guard_of(run, list(scores)),
        "findings": [found.to_dict() for found in distinct(run.findings)],
    }


def scores_of(run: Run, stages: Sequence[Stage]) -> dict[str, Scores]:
    """Model to task to score, of those stages that score."""
    scores: dict[str, Scores] = {}
    for stage in stages:
        name = layout.parse(stage.name)
        if name is not None and name.kind is layout.Kind.SCORE:
            score = json.loads((run.folder(stage.name) / layout.SCORE_FILE).read_text())
            scores.setdefault(stage.model, {})[name.task] = score
    return scores


def mixed_precision(scores: Mapping[str, Scores]) -> str:
    """A warning where a task's scores were made in more than one precision; "" where those of each task are alike."""
    models: dict[str, list[str]] = {}
    kinds: dict[str, set[str]] = {}
    for model, row in scores.items():
        for task, score in row.items():
            precision = str(score.get("precision", "fp32"))  # older ones: fp32
            models.setdefault(precision, []).append(f"{model}/{task}")
            kinds.setdefault(task, set()).add(precision)
    if all(len(found) < 2 for found in kinds.values()):
        return ""
    few = min(models, key=lambda precision: len(models[precision]))
    names = ", ".join(models[few][:3]) + (f" and {len(models[few]) - 3} more" if len(models[few]) > 3 else "")
    others = " and ".join(sorted(set(models) - {few}))
    return (
        f"scores were made in {few} for {names}, in {others} for the rest: small differences between them can come from that; "
        f"remove stages/{layout.Kind.SCORE.value} and run again to score all on one machine"
    )


def publish(run: Run, source: Path, text: str, complete: Callable[[Path], None] = lambda folder: None) -> None:
    """Put the last stage's checkpoint into ``model/``, by hard links where the file system has them.

    Args:
        run: the run.
        source: the stage's folder.
        text: the model card.
        complete: adds what else belongs into the folder, before it is put in place.
    """
    target, partial = run.layout.model, run.out / ".model.partial"
    if is_trimmed(source):  # it was put there before the stage's weights were removed; scores may be newer
        manifest.write_whole(target / "README.md", text)
        return
    manifest.verify_stage(source)
    shutil.rmtree(partial, ignore_errors=True)
    dtype = _dtype(run)
    if dtype is None:
        _link(source, partial)
    else:
        write_whole(open_checkpoint(source), partial, dtype=dtype)
    (partial / "README.md").unlink(missing_ok=True)
    (partial / "README.md").write_text(text, encoding="utf-8")
    complete(partial)
    old, record = run.out / ".model.old", run.layout.published
    record.unlink(missing_ok=True)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.replace(old)
    partial.replace(target)
    manifest.write_whole(record, json.dumps(_made_of(run, source)))
    shutil.rmtree(old, ignore_errors=True)


def is_published(run: Run, source: Path) -> bool:
    """Is what lies in ``model/`` this stage's checkpoint, in the type that the recipe asks for?"""
    record = run.layout.published
    if not run.layout.model.is_dir() or not record.is_file():
        return False
    return bool(json.loads(record.read_text()) == _made_of(run, source))


def _made_of(run: Run, source: Path) -> dict[str, str | None]:
    made = manifest.read(source)
    return {"stage": run.layout.name_of(source), "digest": made.digest if made else "", "dtype": _dtype(run)}


def _link(source: Path, target: Path) -> None:
    """The files of a checkpoint, without what the stage and the trainer left beside them."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.name == manifest.FILE or not file.is_file() or file.name == "training_args.bin":
            continue
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)


def _dtype(run: Run) -> str | None:
    """Of the final model; None: as it was trained."""
    asked = run.recipe.output.dtype
    if asked != "base":
        return asked
    sizes: Counter[str] = Counter()
    for tensor in open_checkpoint(run.given.beneath or run.base.path).tensors.values():
        sizes[tensor.dtype] += tensor.size
    stored = sizes.most_common(1)[0][0]
    return next((name for name, short in NAMES.items() if short == stored), None)
