"""What a finished run leaves beside its stages: ``model/`` with its card, and ``scores.json``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpift import manifest
from cpift.scores import summary
from cpift.stages import Run, Stage


def write_outcome(run: Run, stages: Sequence[Stage]) -> dict[str, Any]:
    """Gather the scores, put the last model in its place; returns what ``scores.json`` holds."""
    scores: dict[str, dict[str, Any]] = {}
    for stage in stages:
        if stage.kind == "evaluate":
            model, task = stage.together.removeprefix("evaluate/"), stage.name.rsplit("/", 1)[1]
            found = json.loads((run.folder(stage.name) / "score.json").read_text())
            scores.setdefault(model, {})[task] = found
    result = {
        "tasks": run.tasks,
        "groups": run.groups(),
        "models": scores,
        "summary": summary(scores, run.tasks),
        "warnings": run.warnings,
    }
    manifest.write_whole(run.out / "scores.json", json.dumps(result))
    last = [stage.name for stage in stages if stage.kind == "refine"][-1]
    manifest.verify_stage(run.folder(last))
    _publish(run, run.folder(last), result)
    return result


def _publish(run: Run, source: Path, result: dict[str, Any]) -> None:
    """``model/``: the last stage's checkpoint, by hard links where the file system has them, with a card."""
    target, partial = run.out / "model", run.out / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for file in sorted(source.iterdir()):
        if file.name == manifest.FILE or not file.is_file() or file.name == "training_args.bin":
            continue
        try:
            os.link(file, partial / file.name)
        except OSError:
            shutil.copyfile(file, partial / file.name)
    (partial / "README.md").unlink(missing_ok=True)
    (partial / "README.md").write_text(card(run, result), encoding="utf-8")
    old = run.out / ".model.old"
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.replace(old)
    partial.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def card(run: Run, result: dict[str, Any]) -> str:
    """The model card: what it is, on what data, with which scores, and how it was made."""
    last = list(result["models"])[-1]
    base = run.recipe.model if "/" in run.recipe.model and not Path(run.recipe.model).exists() else ""
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [cpift, trl, sft]"]
    lines += [f"base_model: {json.dumps(base)}"] if base else []
    lines += ["---", "", "# Model fine-tuned with CPI-FT", ""]
    lines += [
        "Fine-tuned on several tasks by Core Parameter Isolation Fine-Tuning (arXiv:2508.21741) with `cpift`: "
        "each task probed alone, the probes fused, the result refined group by group.",
        "",
        f"Base model: {Path(run.recipe.model).name}. Groups, in order: "
        + "; ".join(", ".join(g) for g in result["groups"] or [])
        + ".",
        "",
        "| task | rows | licence | metric | base | specialist | this model |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in run.recipe.tasks.items():
        models, facts = result["models"], run.facts(f"00-tasks/{name}")
        cells = [models[m][name]["score"] for m in ("base", f"probe/{name}", last)]
        shown = " | ".join(f"{c:.3f}" for c in cells)
        lines.append(
            f"| {_text(name)} | {facts['train_rows']} | {_text(task.licence or 'not stated')} | {facts['metric']} | {shown} |"
        )
    lines += [
        "",
        "Scores are of one run with one seed, on the evaluation rows of the recipe; they say nothing of other",
    ]
    lines += ["tasks, of which some ability may have been lost.", "", "## Recipe", "", "```yaml"]
    lines += [run.recipe.dump().replace("```", "` ` `").rstrip(), "```", ""]
    return "\n".join(lines)


def _text(value: str) -> str:
    """As plain text in a table of Markdown."""
    for character in "\\`*_{}[]<>|#":
        value = value.replace(
            character, "\\" + character if character not in "<>" else {"<": "&lt;", ">": "&gt;"}[character]
        )
    return " ".join(value.split())
