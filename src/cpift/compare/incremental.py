"""Tasks that arrive one after the other: of an old task only a small sample is still at hand.

At each arrival every method may see the same number of tokens: those of a probe and of a refine stage. All but
``multi_task``, which trains on everything anew each time: the upper bound, and what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cpift.compare.merging import merge
from cpift.compare.workbench import Place, Work
from cpift.files import layout
from cpift.runs.stages import identify_stage

Arrivals = list[dict[str, Any]]


def sequential(work: Work) -> Arrivals:
    """Each task's rows alone, on top of the model so far."""
    return _one_after_another(work, "sequential", lambda earlier: None)


def sequential_replay(work: Work) -> Arrivals:
    """The same, half of the rows being the sample of the earlier tasks."""
    return _one_after_another(work, "sequential_replay", lambda earlier: _sample(work, earlier) or None)


def multi_task(work: Work) -> Arrivals:
    """Everything seen so far, from the base, at every arrival: as many tokens as all arrivals so far together."""
    found: Arrivals = []
    for i, task in enumerate(work.tasks):
        seen = work.tasks[: i + 1]
        name = f"retrain/{i + 1}"
        place = work.train(name, work.base, seen, sum(_allowance(work, t) for t in seen))
        found.append(_arrival(work, task, name, place, work.spent(name)))
    return found


def cpi_ft(work: Work) -> Arrivals:
    """Probe the base on the new task, add its update to the model so far with its core transplanted, then refine.

    The refine stage sees the new rows and the sample of the old, the cores of all earlier tasks frozen.
    """
    found: Arrivals = []
    current = work.base
    for i, task in enumerate(work.tasks):
        earlier = work.tasks[:i]
        probe_tokens = work.paper_tokens([task])
        before = work.spent()
        probe = work.train(
            layout.probe(task), work.base, [task], probe_tokens, training=work.run.recipe.training_of("probe")
        )
        work.make(identify_stage(work.run, task))
        if earlier:
            current = work.add(f"incremental/{i + 1}/fused", task, probe, current)
            rest = _allowance(work, task) - probe_tokens
            current = work.train(
                f"incremental/{i + 1}/refined", current, [task], rest, replay=_sample(work, earlier),
                frozen=earlier if work.run.recipe.refine.freeze else None,
                training=work.run.recipe.training_of("refine"),
            )  # fmt: skip
        else:
            current = work.train(
                f"incremental/{i + 1}/refined", probe, [task], _allowance(work, task) - probe_tokens,
                training=work.run.recipe.training_of("refine"),
            )  # fmt: skip
        found.append(_arrival(work, task, f"incremental/{i + 1}", current, work.spent() - before))
    return found


def cpi_ft_sequential(work: Work) -> Arrivals:
    """As sequential_replay, with the cores of all earlier tasks frozen; then the new core is transplanted into the model
    so far, and all else interpolated spherically between the two.

    The core of a task is what its arrival moved most: no probe is needed, all tokens go into the model.
    """
    found: Arrivals = []
    current = work.base
    for i, task in enumerate(work.tasks):
        earlier, name = work.tasks[:i], f"continued/{i + 1}"
        trained = work.train(
            f"{name}/trained", current, [task], _allowance(work, task), replay=_sample(work, earlier) or None,
            frozen=earlier if earlier and work.run.recipe.refine.freeze else None,
        )  # fmt: skip
        work.core_of(task, current, trained)
        current = work.blend(f"{name}/fused", task, trained, current) if earlier else trained
        found.append(_arrival(work, task, name, current, work.spent(name)))
    return found


def task_arithmetic(work: Work) -> Arrivals:
    """Probes of all tasks so far, each with the whole allowance, merged by mergekit at every arrival."""
    found: Arrivals = []
    probes: dict[str, Place] = {}
    for i, task in enumerate(work.tasks):
        name = f"merge/probe/{task}"
        probes[task] = work.train(name, work.base, [task], _allowance(work, task))
        place = probes[task]
        if i:
            place = merge(work, f"merge/{i + 1}", "task_arithmetic", probes, {"weight": min(1.0, 2 / len(probes))})
        found.append(_arrival(work, task, f"merge/{i + 1}", place, work.spent(name)))
    return found


INCREMENTAL: Mapping[str, Callable[[Work], Arrivals]] = {
    function.__name__: function
    for function in (sequential, sequential_replay, cpi_ft, cpi_ft_sequential, task_arithmetic, multi_task)
}


def _one_after_another(work: Work, name: str, replay: Callable[[list[str]], dict[str, int] | None]) -> Arrivals:
    found: Arrivals = []
    current = work.base
    for i, task in enumerate(work.tasks):
        stage = f"{name}/{i + 1}"
        current = work.train(stage, current, [task], _allowance(work, task), replay=replay(work.tasks[:i]))
        found.append(_arrival(work, task, stage, current, work.spent(stage)))
    return found


def _allowance(work: Work, task: str) -> float:
    """Tokens of an arrival: a probe of the task, and half as many again to settle it in."""
    return 1.5 * work.paper_tokens([task])


def _sample(work: Work, earlier: list[str]) -> dict[str, int]:
    return dict.fromkeys(earlier, work.run.recipe.refine.examples_per_task)


def _arrival(work: Work, task: str, model: str, place: Place, tokens: int) -> dict[str, Any]:
    """Scored on all tasks, those to come as well: what a task gains when it arrives counts from there."""
    return {"task": task, "tokens": tokens, "scores": work.score(model, place)}
