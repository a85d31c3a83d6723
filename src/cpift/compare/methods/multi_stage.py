"""Fine-tuning on one group of tasks after the other."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from cpift.compare.methods.method import Method
from cpift.files import layout
from cpift.metrics.score import Scores

if TYPE_CHECKING:
    from cpift.compare.workbench import Work

STAGES_AT_RANDOM = 3  # where every task is a group of its own (the paper's K)
_SOURCE = "the paper's baseline (arXiv:2508.21741)"


def _random(work: Work) -> Scores:
    return in_stages(work, "multi_stage_random", _groups(work))


def _heuristic(work: Work) -> Scores:
    groups = _groups(work)

    def lost_share(task: str) -> float:
        losses = [loss for _, loss, _ in work.run.facts(layout.probe(task))["losses"]]
        return 1 - losses[-1] / losses[0] if losses and losses[0] else 0.0

    easiest = sorted(groups, key=lambda group: -sum(map(lost_share, group)) / len(group))
    return in_stages(work, "multi_stage_heuristic", easiest)


def _replay(work: Work) -> Scores:
    return in_stages(work, "multi_stage_replay", _groups(work), work.run.recipe.refine.examples_per_task)


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


def in_stages(work: Work, name: str, groups: list[list[str]], examples: int = 0) -> Scores:
    """Train on the groups in this order, and score the last model.

    Args:
        work: the method's workbench.
        name: of the stages and the model.
        groups: tasks of each stage.
        examples: rows of each earlier task that later stages see again; 0: none.
    """
    total, place, share = work.epoch_tokens(work.tasks), work.base, 0.0
    for k, group in enumerate(groups, start=1):
        replay = {task: examples for earlier in groups[: k - 1] for task in earlier} if examples else None
        share += work.epoch_tokens(group) / total
        # A stage of few steps sees more or fewer tokens than it was given: the next makes up for it.
        left = max(1.0, share * work.budget - work.spent(f"{name}/"))
        place = work.train(f"{name}/{k}", place, group, left, replay=replay)
    return work.score(name, place)


RANDOM = Method(
    name="multi_stage_random",
    summary="the groups that the method finds, one after the other, shuffled by seed; three random groups where every "
    "task is one of its own",
    trains="one model, group by group",
    source=_SOURCE,
    run=_random,
)
HEURISTIC = Method(
    name="multi_stage_heuristic",
    summary="the same groups, easiest first: by the share of its first loss that the probe has lost",
    trains="one model, group by group",
    source=_SOURCE,
    run=_heuristic,
)
REPLAY = Method(
    name="multi_stage_replay",
    summary="as multi_stage_random; half of each later stage's rows are a sample of all earlier tasks, "
    "`refine.examples_per_task` of each",
    trains="one model, group by group",
    source="experience replay",
    run=_replay,
)
