"""One stage of a run is made: in its partial place, by its own function, hashed, and put in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from cpift.errors import CpiftError, OutOfMemory, is_disk_full, is_out_of_memory
from cpift.files import manifest
from cpift.runs.stage import Run, Stage
from cpift.runs.usage import peak_memory, reset_peak, versions
from cpift.train import accelerator


def make(run: Run, due: Sequence[Stage], before: Callable[[], None] = lambda: None) -> None:
    """Make stages by one call of the first one's action; what they need is there. ``before``: called just before.

    Raises:
        CpiftError: what the action raises; a full disk; no memory, with the stage's name.
    """
    first = due[0]
    needs = {s.name: needs_of(run, s) for s in due}
    folders = {s.name: manifest.begin(run.folder(s.name), manifest.key_of(s.made_of, needs[s.name])) for s in due}
    reset_peak()
    accelerator.reset_peak()
    began = time.perf_counter()
    try:
        before()
        facts = first.action(folders)
    except Exception as error:
        if not isinstance(error, CpiftError) and is_disk_full(error):
            raise CpiftError(
                f"{first.name}: the disk is full; make room and run again, finished stages stand"
            ) from error
        if isinstance(error, OutOfMemory):
            raise CpiftError(f"{first.name}: {error}") from error
        if not isinstance(error, CpiftError) and is_out_of_memory(error):
            why = " ".join(str(error).split())[:200]
            raise CpiftError(f"{first.name}: out of memory on {accelerator.lacking(error)} ({why})") from error
        raise
    seconds, peak = time.perf_counter() - began, peak_memory()
    device = accelerator.used()
    for stage in due:
        full = {
            **facts.get(stage.name, {}),
            "seconds": seconds / len(due),
            "peak_memory": peak,
            **device,
            "disk": manifest.disk_of(folders[stage.name]),
            "seed": run.recipe.seed,
            "threads": torch.get_num_threads(),
            "versions": dict(versions()),
            "findings": [finding.to_dict() for finding in run.findings if finding.stage == stage.name],
        }
        key = manifest.key_of(stage.made_of, needs[stage.name])
        manifest.finish(run.folder(stage.name), key, stage.made_of, needs[stage.name], full)


def needs_of(current: Run, stage: Stage) -> dict[str, str]:
    """Digests of the stages that this one is made from; "" for one that is not there."""
    found = {name: manifest.read(current.folder(name)) for name in stage.needs}
    return {name: made.digest if made else "" for name, made in found.items()}
