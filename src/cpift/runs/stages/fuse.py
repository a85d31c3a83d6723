"""The stage that fuses the probes into the backbone, their core regions transplanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpift.checkpoint.reader import weight_bytes
from cpift.console.progress import Counter
from cpift.files import layout
from cpift.files.findings import finding
from cpift.method.fuse import fuse
from cpift.runs.identity import settings_of
from cpift.runs.stage import Facts, ModelRef, Run, Stage

CODE = 1  # raise it when the same settings and inputs would give another result


def fuse_stage(run: Run, backbone: ModelRef) -> Stage:
    """Fuses all probes into the backbone."""
    part = run.recipe.fuse
    settings: dict[str, Any] = {
        **part.model_dump(exclude={"every"}),
        "tasks": run.tasks,
        **settings_of(run.base, "base"),
    }
    # Refine stages in bf16 start from the very values that are written here.
    dtype = {"dtype": "base"} if run.recipe.dtype == "bfloat16" else {}
    settings |= dtype
    if backbone != run.base:
        settings |= settings_of(backbone, "backbone")
    needs = [*run.base.needs, *(stage(task) for task in run.tasks for stage in (layout.probe, layout.region))]
    needs += [stage for stage in backbone.needs if stage not in needs]

    def combine(folders: Mapping[str, Path]) -> Facts:
        tuned = {task: run.folder(layout.probe(task)) for task in run.tasks}
        regions = {task: run.layout.region(task) for task in run.tasks}
        total = 2 * weight_bytes(run.base.path, backbone.path, *tuned.values())
        report = fuse_into(
            folders[layout.FUSE],
            run.base.path,
            tuned,
            backbone=backbone.path,
            regions=regions if part.transplant else None,
            **part.model_dump(exclude={"transplant", "every"}),
            **dtype,
            progress=Counter(run.reporter, total),
        )
        for text in report["warnings"]:
            run.add(finding("checkpoints-differ", text, layout.FUSE))
        return {layout.FUSE: {key: value for key, value in report.items() if key not in ("tensors", "warnings")}}

    what = "fuse the probes into the backbone"
    return Stage(layout.FUSE, "fuse", what, settings, tuple(needs), combine, writes_model=True, code=CODE)


def fuse_into(folder: Path, base: Path, tuned: Mapping[str, Path], **options: Any) -> dict[str, Any]:
    """:func:`cpift.method.fuse.fuse` into the folder of a stage, which holds a marker and so is not empty."""
    target = folder / "model"
    report = fuse(base, tuned, target, **options)
    # Without the writer's key, which holds the times of the inputs' files: the same fusion is then the same stage.
    held = {
        name: value for name, value in json.loads((target / layout.FUSION_FILE).read_text()).items() if name != "key"
    }
    (target / layout.FUSION_FILE).write_text(json.dumps(held))
    for file in sorted(target.iterdir()):
        file.replace(folder / file.name)
    target.rmdir()
    return dict(report)
