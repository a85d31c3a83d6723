"""The stage that compares the core regions and groups the tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cpift.files import layout
from cpift.files.findings import finding
from cpift.method.group import group
from cpift.method.region import Region
from cpift.runs.stage import Facts, Run, Stage

CODE = 1  # raise it when the same settings and inputs would give another result


def group_stage(run: Run) -> Stage:
    """Groups tasks whose regions overlap, and orders the groups."""
    part = run.recipe.group
    settings = {"threshold": part.threshold, "order": part.order, "seed": run.recipe.seed, "tasks": run.tasks}

    def compare(folders: Mapping[str, Path]) -> Facts:
        regions = {task: Region.load(run.layout.region(task)) for task in run.tasks}
        grouping = group(regions, part.threshold, part.order, run.recipe.seed)
        (folders[layout.GROUP] / layout.GROUPS_FILE).write_text(json.dumps(grouping.to_dict(), indent=1))
        if len(grouping.groups) == 1:
            text = "all tasks are one group: the backbone is multi-task SFT, and refining freezes nothing"
            run.add(finding("one-group", text, layout.GROUP))
        return {layout.GROUP: {"stages": grouping.stages}}

    needs = tuple(map(layout.region, run.tasks))
    return Stage(layout.GROUP, "group", "compare regions, group tasks", settings, needs, compare, code=CODE)
