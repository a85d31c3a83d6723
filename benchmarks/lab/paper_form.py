"""E4: the paper's form in its own regime, and stitching: true groups, long probes, tuned refine, K alike in all stages.

Each of two skills has two sets of rows without a word in common, so that four tasks make two true groups. The same
skill in another format makes none: the overlap of such cores is that of two skills.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lab.arrivals import Skill, skill_rows
from lab.forms import Groups, Trial, as_large, groups_of, overlaps, shuffled
from lab.rows import EXPLORE, REPORT
from lab.spending import SPECIALISTS, spent, tuned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.run import Laboratory

ASKED, SETS = 2, 2  # skills of a unit, sets of rows of each
STEPS, PERCENT, THRESHOLD = 80, 10.0, 0.1
RATES = (1e-3, 2e-3)
LABELS = [
    "multi", "half", "stages", "soup_mixed", "stitch_mixed", "stitch_stages", "stitch_frozen", "paper", "paper_free",
]  # fmt: skip
ALIKE = {
    "soup_mixed": "stitch_mixed",
    "half": "multi",
    "stitch_stages": "stitch_frozen",
    "paper_free": "paper",
}  # at the rate of the other one


def unit_of(laboratory: Laboratory, unit: int, skills: Sequence[str]) -> tuple[Trial, dict[str, Skill]]:
    """The tasks of a unit: two skills drawn by its number, each with two sets of rows."""
    tasks = dict[str, Skill]()
    size = laboratory.size
    for name in random.Random(unit).sample(list(skills), ASKED):
        whole = skill_rows(name, 100 * unit, size, laboratory.device)
        for i, index in enumerate(torch.arange(size.train).chunk(SETS)):
            tasks[f"{name}/{i}"] = replace(whole, train=whole.train.take(index))
    rows = [task.train for task in tasks.values()]
    steps = 4 if laboratory.tiny else STEPS
    return Trial(laboratory.network, laboratory.base(unit), rows, steps, RATES[0], PERCENT, 100 * unit), tasks


def groups_by_label(trial: Trial, unit: int) -> dict[str, Groups]:
    """The groups that the cores of half-length probes make, for all forms; multi-stage SFT has as many, drawn at random."""
    updates, _ = trial.probes(0.5)
    found = shuffled(groups_of(overlaps(trial.cores(updates)), THRESHOLD), unit)
    return {label: as_large(found, unit) if label == "stages" else found for label in LABELS}


def e4(laboratory: Laboratory, units: int) -> None:
    """Rates first, on two exploring skills; then unit after unit."""
    log = laboratory.log("e4")
    trial, tasks = unit_of(laboratory, 0, EXPLORE)
    pairs = [list(range(SETS * i, SETS * (i + 1))) for i in range(ASKED)]
    own = [label for label in LABELS if label not in ALIKE]
    rates = tuned(log, "e4-tuning", trial, tasks, own, pairs, RATES)
    rates |= {label: rates[other] for label, other in ALIKE.items()}
    for unit in range(1, units + 1):
        trial, tasks = unit_of(laboratory, unit, REPORT)
        trial.probe_rate = rates[SPECIALISTS]
        spent(log, "e4", unit, trial, tasks, rates, groups_by_label(trial, unit))
