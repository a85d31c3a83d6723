"""E4: the paper's form in its own regime, and stitching: true groups, long probes, tuned refine, K alike in all stages.

Each of three skills is asked in two formats, so that six tasks make three true groups.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from lab.arrivals import CHECKED, Size, Skill
from lab.forms import Groups, Trial, as_large, groups_of, overlaps, shuffled
from lab.rows import ASSISTANT, END, EXPLORE, REPORT, SKILLS, USER, Rows, encoded, task_rows
from lab.spending import spent, tuned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.run import Laboratory

FORMATS = (USER + "{skill}:{word}" + ASSISTANT, USER + "{word}, {skill}" + ASSISTANT)
ASKED = 3  # skills of a unit
STEPS, PERCENT, THRESHOLD = 100, 10.0, 0.1
RATES = (7e-4, 1.5e-3, 3e-3)
LABELS = [
    "multi", "half", "stages", "soup_mixed", "stitch_mixed", "stitch_stages", "stitch_frozen", "paper", "paper_free",
]  # fmt: skip


def asked(skill: str, layout: str, seed: int, size: Size) -> Skill:
    """Rows of a skill in a format; both formats of a skill have words of their own, but the same evaluation words."""

    def made(words: list[str]) -> Rows:
        return encoded([(layout.format(skill=skill, word=word), SKILLS[skill](word) + END) for word in words])

    words, _ = task_rows(skill, size.evaluated, "eval")
    avoid = frozenset(words)
    seen, _ = task_rows(skill, CHECKED, f"check/{layout}/{seed}", avoid)
    trained, _ = task_rows(skill, size.train, f"train/{layout}/{seed}", avoid | frozenset(seen))
    return Skill(made(trained), made(seen), made(words))


def unit_of(laboratory: Laboratory, unit: int, skills: Sequence[str]) -> tuple[Trial, dict[str, Skill]]:
    """The tasks of a unit: three skills drawn by its number, each in both formats."""
    chosen = random.Random(unit).sample(list(skills), ASKED)
    tasks = {
        f"{skill}/{i}": asked(skill, layout, 100 * unit, laboratory.size)
        for skill in chosen
        for i, layout in enumerate(FORMATS)
    }
    rows = [task.train for task in tasks.values()]
    steps = 4 if laboratory.tiny else STEPS
    return Trial(laboratory.network, laboratory.base(unit), rows, steps, RATES[1], PERCENT, 100 * unit), tasks


def groups_by_label(trial: Trial, unit: int) -> dict[str, Groups]:
    """The groups that the cores of half-length probes make, for all forms; multi-stage SFT has as many, drawn at random."""
    updates, _ = trial.probes(0.5)
    found = shuffled(groups_of(overlaps(trial.cores(updates)), THRESHOLD), unit)
    return {label: as_large(found, unit) if label == "stages" else found for label in LABELS}


def e4(laboratory: Laboratory, units: int) -> None:
    """Rates first, on three exploring skills; then unit after unit."""
    log = laboratory.log("e4")
    trial, tasks = unit_of(laboratory, 0, EXPLORE)
    pairs = [[2 * i, 2 * i + 1] for i in range(ASKED)]
    rates = tuned(log, "e4-tuning", trial, tasks, LABELS, pairs, RATES)
    for unit in range(1, units + 1):
        trial, tasks = unit_of(laboratory, unit, REPORT)
        trial.probe_rate = rates["specialists"]
        spent(log, "e4", unit, trial, tasks, rates, groups_by_label(trial, unit))
