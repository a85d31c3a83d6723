"""What the stages of a run folder are: done, running, missing, stale, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpift.errors import CpiftError
from cpift.files import layout, manifest
from cpift.files.layout import Kind
from cpift.files.lock import in_use
from cpift.recipe.recipe import Recipe
from cpift.runs.make import needs_of
from cpift.runs.stage import Run, Stage
from cpift.runs.stages.arrivals import arrival_stages
from cpift.runs.stages.graph import first_stages, last_stages, middle_stages
from cpift.runs.trim import is_trimmed


@dataclass(frozen=True)
class StageState:
    """``state`` is done, running, missing or stale; ``why`` says it in words, where there is something to say."""

    name: str
    state: str
    why: str = ""


def stage_states(recipe: Recipe, out: Path) -> list[StageState]:
    """State of every stage that can be known yet; writes nothing."""
    run = Run(recipe, out)
    states: list[StageState] = []
    _add(run, first_stages(run), states)
    if any(s.state != "done" for s in states if layout.kind_of(s.name) is Kind.ROWS):
        return [*states, StageState(f"{Kind.PROBE.value} …", "missing", "known once the tasks' rows are there")]
    if recipe.arrivals:
        _add(run, arrival_stages(run), states)
        return states
    _add(run, _without_writing(run), states)
    if run.groups() is None or any(s.state != "done" for s in states):
        return [*states, StageState(f"{Kind.BACKBONE.value} …", "missing", "known once the groups are there")]
    _add(run, last_stages(run), states)
    return states


def _without_writing(run: Run) -> list[Stage]:
    if run.recipe.probe.steps == "auto" and not run.layout.state.is_file():
        raise CpiftError(f"{run.out}: its state.json is gone; run again to settle the probes' steps")
    return middle_stages(run)


def _add(run: Run, stages: Sequence[Stage], states: list[StageState]) -> None:
    busy = in_use(run.out)
    done = {state.name for state in states if state.state == "done"}
    missing = {state.name for state in states if state.state != "done"}
    stale = missing - done  # one whose weights were removed is made again with the same bits: nothing else is stale
    for stage in stages:
        made = manifest.read(run.folder(stage.name))
        needs = needs_of(run, stage)
        waiting = sorted(set(stage.needs) & stale)
        if made is not None and made.key == manifest.key_of(stage.made_of, needs) and not waiting:
            removed = is_trimmed(run.folder(stage.name))
            states.append(StageState(stage.name, "done", "its weights were removed" if removed else ""))
            continue
        for need in stage.needs:
            if is_trimmed(run.folder(need)) and need not in missing:
                missing.add(need)
                states.append(StageState(need, "missing", f"its weights were removed, and {stage.name} needs them"))
        stale.add(stage.name)
        if manifest.partial_of(run.folder(stage.name)).exists():
            states.append(StageState(stage.name, "running" if busy else "missing", "" if busy else "was interrupted"))
        elif made is None:
            states.append(StageState(stage.name, "missing"))
        else:
            changes = manifest.differences(made, stage.made_of, needs) or [
                f"{name} is to be redone" for name in waiting
            ]
            states.append(StageState(stage.name, "stale", ", ".join(changes)))
