"""E3: does isolation help where tasks truly conflict? Ciphers under prompts that differ in one digit, two sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.ciphers import STEPS as PRETRAINING
from lab.ciphers import cipher_rows, copying
from lab.forms import Trial, shuffled
from lab.network import Network
from lab.rows import vocabulary_size
from lab.spending import spent, tuned

if TYPE_CHECKING:
    from lab.arrivals import Skill
    from lab.run import Laboratory

SIZES = {"small": (2, 64), "large": (2, 128)}  # layers and width
TASKS, STEPS, PERCENT = 4, 60, 10.0
RATES = (1.5e-3, 3e-3, 6e-3)
LABELS = ["multi", "half", "stages", "soup_mixed", "stitch_mixed", "stitch_stages", "stitch_frozen"]


def e3(laboratory: Laboratory, units: int) -> None:
    """Rates first, on maps and a model of their own; then unit after unit."""
    log = laboratory.log("e3")
    for size, (layers, width) in SIZES.items():
        network = Network(vocabulary_size(), layers=layers, width=width, heads=width // 32, inner=4 * width, half=False)
        if laboratory.tiny:
            network = laboratory.network

        def unit_of(seed: int, network: Network = network) -> tuple[Trial, dict[str, Skill]]:
            base = copying(network, laboratory.folder / "models", seed, 3 if laboratory.tiny else PRETRAINING)
            skills = {str(k): cipher_rows(k, seed, laboratory.size) for k in range(TASKS)}
            rows = [skill.train for skill in skills.values()]
            steps = 4 if laboratory.tiny else STEPS
            return Trial(network, base, rows, steps, RATES[0], PERCENT, 100 * seed), skills

        alone = [[k] for k in range(TASKS)]
        trial, skills = unit_of(0)
        rates = tuned(log, f"e3-{size}-tuning", trial, skills, LABELS, shuffled(alone, 0), RATES)
        for unit in range(1, units + 1):
            trial, skills = unit_of(unit)
            spent(log, f"e3-{size}", unit, trial, skills, rates, dict.fromkeys(LABELS, shuffled(alone, unit)))
