"""``output.keep: final``: of a finished run only the final model keeps its weights.

A stage whose weights are removed stays finished: regions, facts and scores stand, and its key holds. Where a later
stage needs its model after all, such as when a task is added, it is made again; the bits are those of before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cpift.files import layout, manifest
from cpift.runs.stage import Run, Stage

MARKER = "removed.json"  # beside stage.json: names of the files that were removed
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def is_trimmed(folder: Path) -> bool:
    """Were the weights of a finished stage removed?"""
    return (folder / MARKER).is_file()


def trim(run: Run, stages: Sequence[Stage]) -> int:
    """Remove the weights of all stages but of a converted base; returns the bytes that became free, hard links to ``model/`` not counted.

    Args:
        run: a finished run, whose final model is in its place.
        stages: all stages.
    """
    freed = 0
    for stage in stages:
        folder = run.folder(stage.name)
        made = manifest.read(folder)
        if not stage.writes_model or stage.name == layout.BASE or made is None:
            continue
        files = [folder / name for name in made.outputs if name.endswith(_WEIGHTS) and name != layout.REGION_FILE]
        if not is_trimmed(folder):  # one that was cut off in the removal is finished
            manifest.write_whole(folder / MARKER, json.dumps([file.name for file in files]))
        for file in files:
            if file.is_file():
                freed += file.stat().st_size if file.stat().st_nlink == 1 else 0
                file.unlink()
    return freed
