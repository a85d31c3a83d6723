"""S: given five specialists of one pre-trained model and no training, do stitched cores beat the field's merges?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lab.arrivals import Size, Skill, skill_rows
from lab.merges import MERGES, RULES, WEIGHTS, Given, Merge, Setting
from lab.methods import measured_fisher
from lab.network import Network
from lab.pretrain import STEPS, kept, pretrained
from lab.rows import REPORT, SKILLS, Rows, joined, pretraining_lines
from lab.spending import scores
from lab.training import Mixture, loss_of, train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.outcomes import Log, Stage, Value
    from lab.run import Laboratory

ACQUAINTED, ACQUAINT_RATE, BATCH = 300, 1e-3, 32  # steps, rate, rows of a batch: half of them text
PROBE_STEPS, PROBE_RATE = 60, 5e-4
KINDS = ("acquainted", "plain")
USUAL = {f"{label}@usual": merge.usual for label, merge in MERGES.items() if merge.usual is not None}


def acquainted(network: Network, folder: Path, seed: int, size: Size, steps: int = ACQUAINTED) -> torch.Tensor:
    """The pre-trained model trained further on text and on rows of all ten skills in the tasks' format, float32 (D,).

    From the pre-trained model itself nothing merges: its specialists answer any prompt by their own skill.
    """

    def make() -> torch.Tensor:
        base = pretrained(network, folder, seed, 3 if steps < ACQUAINTED else STEPS)
        text = pretraining_lines(5000 if steps >= ACQUAINTED else 100, f"acquaint/{seed}")
        draw = Mixture(text, joined([skill_rows(name, 1000 + seed, size, "cpu").train for name in SKILLS])).batch
        return train(network, base, lambda rng: draw(rng, BATCH), steps=steps, rate=ACQUAINT_RATE, seed=seed)[0]

    return kept(folder / f"acquainted-{network.count}-{steps}-{seed}.pt", make)


@dataclass(frozen=True)
class Specialists:
    """The specialists of one model, and the rows they are tried on.

    Attributes:
        network: the model's shape.
        given: what is merged.
        skills: rows of each.
    """

    network: Network
    given: Given
    skills: dict[str, Skill]

    @torch.inference_mode()
    def tried(self, flat: torch.Tensor) -> tuple[float, float]:
        """Mean score and mean loss on the rows for tuning, from one pass."""
        rows: Rows = joined([skill.check for skill in self.skills.values()])
        logits = self.network.logits(flat, rows.ids)
        best = logits[:, :-1].argmax(-1)
        correct = (best == rows.ids[:, 1:]) | ~rows.counted[:, 1:]
        return float(correct.all(1).float().mean()), float(loss_of(logits, rows))


def specialists(laboratory: Laboratory, base: torch.Tensor, unit: int, names: Sequence[str]) -> Specialists:
    """One probe of each skill."""
    network, seed = laboratory.network, 100 * unit
    skills = {name: skill_rows(name, seed, laboratory.size, "cpu") for name in names}
    steps = 3 if laboratory.tiny else PROBE_STEPS
    tuned = [
        train(network, base, Mixture(s.train).batch, steps=steps, rate=PROBE_RATE, seed=seed)[0]
        for s in skills.values()
    ]
    fishers = [measured_fisher(network, flat, s.train) for flat, s in zip(tuned, skills.values(), strict=True)]
    given = Given(base, torch.stack(tuned) - base, network.sizes, torch.stack(fishers), unit)
    return Specialists(network, given, skills)


@dataclass(frozen=True)
class Trial:
    """A setting and what it scores on the rows for tuning."""

    setting: Setting
    score: float
    loss: float


def chosen(trials: Sequence[Trial]) -> Setting:
    """The setting of the highest score; equal ones: of the lower loss."""
    return max(trials, key=lambda trial: (trial.score, -trial.loss)).setting


def tried_all(found: Specialists, label: str, merge: Merge) -> list[Trial]:
    """All trials of a merge; for stitching also ω, at the best of the other settings."""

    def tried(settings: Sequence[Setting]) -> list[Trial]:
        return [Trial(setting, *found.tried(merge.made(found.given, setting))) for setting in settings]

    trials = tried(merge.settings)
    if label.startswith("stitch"):
        trials += tried([{**chosen(trials), "ω": weight} for weight in WEIGHTS])
    return trials


def text(setting: Setting) -> str:
    """A setting as tables have it."""
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else str(value) for name, value in setting.items())


def s(laboratory: Laboratory, units: int) -> None:
    """The acquainted models first, unit after unit; then the organism's own, on which merges fail."""
    log = laboratory.log("s")
    for kind in KINDS:
        for unit in range(1, units + 1):
            _unit(laboratory, log, kind, unit)


def _unit(laboratory: Laboratory, log: Log, kind: str, unit: int) -> None:
    """All merges of a unit's specialists: tuned on the rows for that, then evaluated once."""
    labels = ["base", "specialists", *MERGES, *(f"stitch@{rule}" for rule in RULES), *USUAL]
    if all(f"s-{kind}/{unit}/{label}" in log for label in labels):
        return
    base = laboratory.base(unit)
    if kind == "acquainted":
        steps = 3 if laboratory.tiny else ACQUAINTED
        base = acquainted(laboratory.network, laboratory.folder / "models", unit, laboratory.size, steps)
    found = specialists(laboratory, base, unit, REPORT)

    def add(label: str, outcomes: dict[str, str], **more: Any) -> None:
        where: dict[str, Value | list[Stage]] = {"experiment": f"s-{kind}", "unit": unit, "model": unit, "label": label}
        log.add(f"s-{kind}/{unit}/{label}", {**where, "right": outcomes, **more})

    def evaluated(merge: Merge, setting: Setting) -> dict[str, str]:
        return scores(found.network, merge.made(found.given, setting), found.skills)

    add("base", scores(found.network, base, found.skills))
    alone = zip(found.given.updates, found.skills.items(), strict=True)
    add("specialists", {
        name: scores(found.network, base + update, {name: skill})[name] for update, (name, skill) in alone
    })  # fmt: skip
    for label, setting in USUAL.items():
        add(label, evaluated(MERGES[label.partition("@")[0]], setting), setting=text(setting))
    for label, merge in MERGES.items():
        began = time.perf_counter()
        trials = tried_all(found, label, merge)
        best = chosen(trials)
        shown = [[text(trial.setting), round(trial.score, 5), round(trial.loss, 4)] for trial in trials]
        add(label, evaluated(merge, best), setting=text(best), trials=shown)
        if label == "stitch":
            for rule in RULES:
                of_rule = chosen([trial for trial in trials if trial.setting["overlap"] == rule])
                add(f"stitch@{rule}", evaluated(merge, of_rule), setting=text(of_rule))
        print(f"s-{kind}/{unit}/{label}", f"{time.perf_counter() - began:.1f} s", flush=True)
