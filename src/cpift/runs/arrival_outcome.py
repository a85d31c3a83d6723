"""What a run of arrivals leaves: ``scores.json`` with what was gained and lost, and ``model/`` with its regions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpift.files import layout, manifest
from cpift.method.patch import make_patch
from cpift.method.region import Region
from cpift.metrics.change import Change
from cpift.metrics.guard import guard_changes
from cpift.metrics.score import Scores
from cpift.report.arrivals import ARRIVALS, drift_after
from cpift.report.guard import change_line, drift_line
from cpift.runs.card_data import data_block, is_hub_id
from cpift.runs.model_card import plain
from cpift.runs.publish import outcome, publish, scores_of
from cpift.runs.stage import Run, Stage
from cpift.runs.stages.arrivals import carried_regions
from cpift.runs.stages.guard import guard_entry
from cpift.runs.trim import is_trimmed


def write_arrivals(run: Run, stages: Sequence[Stage]) -> dict[str, Any]:
    """Gather the scores and put the last model in its place; returns what ``scores.json`` holds."""
    arrivals = run.recipe.additions
    scores = scores_of(run, stages)
    changes = changes_of(run, scores)
    last = len(arrivals.order)
    made = run.facts(layout.arrival(last, "fuse"))
    protected = next((stage for stage in stages if stage.name == layout.PROTECT), None)
    result = {
        **outcome(run, scores),
        "format": ARRIVALS,
        "arrivals": arrivals.order,
        "groups": None,
        "changes": [asdict(change) for change in changes],
        "protected": run.facts(layout.PROTECT)["count"] if protected else 0,
        "parameters": made["total"],
    }
    manifest.write_whole(run.layout.scores, json.dumps(result))
    folder = run.folder(layout.arrival(last, "fuse"))
    # Without a criterion of its own, the protected region is the union of those that came along.
    own = protected is not None and protected.settings["by"] != "none"
    publish(run, folder, _card(run, result, changes), lambda model: _carry(run, model, own))
    if arrivals.train == "inside" and last == 1:
        _write_patch(run, arrivals.order[0], folder)
    return result


def _write_patch(run: Run, task: str, folder: Path) -> None:
    """Write the patch of the addition in ``folder``, unless the file is there and was made from the same stage."""
    file, made = run.layout.patch(task), manifest.read(folder)
    assert made is not None
    record = {"stage": made.key, "digest": made.digest, "patch": manifest.file_hash(file) if file.is_file() else ""}
    held = run.layout.patched.read_text(encoding="utf-8") if run.layout.patched.is_file() else ""
    if record["patch"] and held == json.dumps(record):
        return
    run.layout.patched.unlink(missing_ok=True)
    tuned = run.layout.model if is_trimmed(folder) else folder
    # A core is region.percent of the model, however much that is; model/ may be written in a wider type.
    make_patch(run.base.path, tuned, file, name=task, max_share=1, rounded=True)
    manifest.write_whole(run.layout.patched, json.dumps({**record, "patch": manifest.file_hash(file)}))


def changes_of(run: Run, scores: Mapping[str, Scores]) -> list[Change]:
    """Each task before the first and after the last arrival, and each set of the guard."""
    arrivals = run.recipe.additions
    last = layout.arrival_model(len(arrivals.order))
    before, after = scores[layout.BEFORE_MODEL], scores[last]
    changes = [Change.between(task, before[task], after[task], task in arrivals.order) for task in run.tasks]
    return [*changes, *guard_changes(_guard(run, layout.BEFORE_MODEL), _guard(run, last))]


def scores_after(run: Run) -> Scores:
    """Scores of the model after the last arrival of a finished run, those of the guard among them."""
    arrivals = run.recipe.additions
    last = layout.arrival_model(len(arrivals.order))
    files = {task: run.layout.score(last, task) for task in run.tasks}
    return {task: json.loads(file.read_text()) for task, file in files.items()} | _guard(run, last)


def _guard(run: Run, model: str) -> Scores:
    """Scores on the guard set; none where the recipe has no guard."""
    return guard_entry(run, model)["scores"] if run.recipe.guard else {}


def _carry(run: Run, model: Path, protected: bool) -> None:
    """Put the regions beside the weights: those that came along, the protected one, and the new cores.

    A core of a name that came along is joined with it: a task added again loses nothing of its first addition.
    """
    arrivals = run.recipe.additions
    folder = model / layout.CARRIED_REGIONS
    folder.mkdir()
    for name, file in carried_regions(run.given.folder).items():
        shutil.copyfile(file, folder / f"{name}.region.safetensors")
    if protected:
        shutil.copyfile(run.folder(layout.PROTECT) / layout.REGION_FILE, folder / "_protected.region.safetensors")
    for number, task in enumerate(arrivals.order, start=1):
        core = run.folder(layout.arrival(number, "identify")) / layout.REGION_FILE
        target = folder / f"{task}.region.safetensors"
        if target.exists():
            (Region.load(target).detached() | Region.load(core).detached()).save(target)
        else:
            shutil.copyfile(core, target)


def _card(run: Run, result: dict[str, Any], changes: Sequence[Change]) -> str:
    """The model card: what was added, to what, and what it cost."""
    model = run.recipe.model
    start = model if is_hub_id(model) else Path(model).name
    drift = drift_after(result)
    said = [*map(change_line, changes), *([drift_line(drift)] if drift else [])]
    lines = [f"- {plain(line)}" for line in said]
    head = data_block(run, ["cpift", "trl", "sft"])
    part = run.recipe.protect
    how = f"kept rows replayed ({part.replay:.0%} of the training rows where there were any), " if part.replay else ""
    how += f"{result['protected']:,} of {result['parameters']:,} parameters frozen, " if result["protected"] else ""
    how += f"averaged with the model before at a weight of {part.average:g}" if part.average < 1 else "not averaged"
    return (
        f"{head}\n\n# {plain(', '.join(result['arrivals']))} added to {plain(start)}\n\n"
        f"Made with `cpift add` ([arXiv:2508.21741](https://arxiv.org/abs/2508.21741)): {how}.\n\n"
        "## What was gained and lost\n\nAfter minus before, with 95 % intervals over the evaluation rows. One run with one "
        f"seed ({run.recipe.seed}).\n\n" + "\n".join(lines) + "\n"
    )
