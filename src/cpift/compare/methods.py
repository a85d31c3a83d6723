"""The methods side by side: each a short function over the same parts, from a :class:`Work` to scores by task."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from cpift.compare.merging import merge
from cpift.compare.workbench import Place, Work
from cpift.files import layout

Scores = dict[str, dict[str, Any]]
STAGES_AT_RANDOM = 3  # of multi-stage SFT where every task is a group of its own (the paper's K)


def base(work: Work) -> Scores:
    """The model before any training."""
    return work.score(layout.BASE_MODEL, work.base)


def single_task(work: Work) -> Scores:
    """A specialist for each task, scored on its own task alone."""
    places = work.probe()
    return {task: work.score(layout.probe_model(task), place, [task])[task] for task, place in places.items()}


def multi_task(work: Work) -> Scores:
    """SFT on all tasks shuffled."""
    return work.score("multi_task", work.train("multi_task", work.base, work.tasks, _budget(work)))


def bias_only(work: Work) -> Scores:
    """As multi_task, but only the biases are trained (BEFT's control)."""
    place = work.train("bias_only", work.base, work.tasks, _budget(work), trainable="*.bias")
    return work.score("bias_only", place)


def multi_stage_random(work: Work) -> Scores:
    """The groups one after the other, shuffled by seed."""
    return _multi_stage(work, "multi_stage_random", _groups(work))


def multi_stage_heuristic(work: Work) -> Scores:
    """The groups one after the other, easiest first: by the share of its first loss that the probe has lost."""
    groups = _groups(work)

    def fall(task: str) -> float:
        losses = [loss for _, loss, _ in work.run.facts(layout.probe(task))["losses"]]
        return 1 - losses[-1] / losses[0] if losses and losses[0] else 0.0

    easiest = sorted(groups, key=lambda group: -sum(map(fall, group)) / len(group))
    return _multi_stage(work, "multi_stage_heuristic", easiest)


def multi_stage_replay(work: Work) -> Scores:
    """As multi_stage_random, a small sample of all earlier tasks mixed into each stage: as many rows as refine has."""
    return _multi_stage(work, "multi_stage_replay", _groups(work), work.run.recipe.refine.examples_per_task)


def cpi_ft(work: Work) -> Scores:
    """The method, as the recipe has it."""
    return _scored(work, work.cpi_ft())


def cpi_ft_no_refine(work: Work) -> Scores:
    """The fused model, as it is."""
    return _scored(work, work.cpi_ft(refine=False))


def soup(work: Work) -> Scores:
    """The mean of the probes."""
    return _merged(work, "linear", {})


def task_arithmetic(work: Work) -> Scores:
    """The base and the sum of all updates, each times 1/N · 2: a common choice of the scale."""
    return _merged(work, "task_arithmetic", {"weight": 2 / len(work.tasks)})


def ties(work: Work) -> Scores:
    """TIES merging, density 0.2."""
    return _merged(work, "ties", {"density": 0.2})


def dare_ties(work: Work) -> Scores:
    """DARE with TIES, density 0.5."""
    return _merged(work, "dare_ties", {"density": 0.5})


# Recipe settings that turn the method into one of its ablations.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "cpi_ft": {},
    "cpi_ft_random_region": {"region.select": "random"},
    "cpi_ft_no_freeze": {"refine.freeze": False},
    "cpi_ft_no_transplant": {"fuse.transplant": False},
    "cpi_ft_no_refine": {},
}
MERGES = ("soup", "task_arithmetic", "ties", "dare_ties")
METHODS: Mapping[str, Callable[[Work], Scores]] = {
    function.__name__: function
    for function in (
        base, single_task, multi_task, multi_stage_random, multi_stage_heuristic, multi_stage_replay, cpi_ft,
        cpi_ft_no_refine, bias_only, soup, task_arithmetic, ties, dare_ties,
    )
} | dict.fromkeys(("cpi_ft_random_region", "cpi_ft_no_freeze", "cpi_ft_no_transplant"), cpi_ft)  # fmt: skip


def _budget(work: Work) -> float:
    return work.tokens if work.tokens is not None else work.paper_tokens(work.tasks)


def _groups(work: Work) -> list[list[str]]:
    """The groups that the method finds; where each holds one task, three random ones of like size."""
    spent = list(work.trained)
    work.probe()
    work.trained = spent  # the probes serve to find the groups only
    groups = work.run.groups() or []
    if any(len(group) > 1 for group in groups) or len(work.tasks) <= STAGES_AT_RANDOM:
        return groups
    shuffled = list(work.tasks)
    random.Random(f"{work.run.recipe.seed}/stages").shuffle(shuffled)
    return [shuffled[i::STAGES_AT_RANDOM] for i in range(STAGES_AT_RANDOM)]


def _multi_stage(work: Work, name: str, groups: list[list[str]], examples: int = 0) -> Scores:
    total, place, share = work.epoch_tokens(work.tasks), work.base, 0.0
    for k, group in enumerate(groups, start=1):
        replay = {task: examples for earlier in groups[: k - 1] for task in earlier} if examples else None
        share += work.epoch_tokens(group) / total
        # A stage of few steps sees more or fewer tokens than it was given: the next makes up for it.
        left = max(1.0, share * _budget(work) - work.spent(f"{name}/"))
        place = work.train(f"{name}/{k}", place, group, left, replay=replay)
    return work.score(name, place)


def _scored(work: Work, place: Place) -> Scores:
    return work.score(layout.model_of(place[0]), place)


def _merged(work: Work, method: str, parameters: Mapping[str, float]) -> Scores:
    return work.score(f"merge/{method}", merge(work, f"merge/{method}", method, work.probe(), parameters))
