"""Seconds of a training step and device memory with 0, 1, 3, 30 and 90 % of the model frozen, in a probe's training.

Random regions, the same share of every parameter. Trainings with and without a region alternate.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

from inputs import model_name
from step import Step, is_cuda, need, run
from training_speed import BATCH, NEEDS, WARM_UP, Trial

PERCENTS = (1, 3, 30, 90)
FEWEST, MOST = 6, 60  # timed steps


def work(step: Step) -> None:
    need(*NEEDS)
    trial = Trial(step)
    began = time.monotonic()
    first = trial.cpift(BATCH, WARM_UP + 2)
    start = max(0.0, time.monotonic() - began - 4 * first.step_seconds)  # load, set up, save
    slots = 2 * len(PERCENTS)
    timed = timed_steps(0.8 * step.left() / slots, start, first.step_seconds)
    if step.tiny:
        timed = 2
    step.record.add("model", model_name(step), note=f"batch {BATCH}, {timed} steps a training")
    without: list[float] = []
    for percent in (PERCENTS[0], PERCENTS[2]) if step.tiny else PERCENTS:
        if step.left() < 2 * (start + (WARM_UP + timed) * first.step_seconds) and not step.tiny:
            step.record.leave_out(f"{percent} % frozen", "the time was up")
            continue
        plain = trial.cpift(BATCH, WARM_UP + timed)
        region = random_region(trial.base, percent)
        frozen = trial.cpift(BATCH, WARM_UP + timed, region)
        note = f"step {frozen.step_seconds * 1e3:.1f} ms, {plain.step_seconds * 1e3:.1f} ms without"
        if is_cuda():
            more = frozen.peak - plain.peak
            note += f"; peak on the device {frozen.peak / 1e9:.2f} GB, {more / region.count:.1f} bytes a frozen element"
        step.record.add(
            f"{percent} % frozen", 100 * (frozen.step_seconds / plain.step_seconds - 1), "% of a step", note
        )
        without.append(plain.step_seconds)
    if without:
        step.record.add("0 % frozen", 1e3 * statistics.median(without), "ms", f"median of {len(without)} trainings")


def timed_steps(slot: float, start: float, step_seconds: float) -> int:
    """Steps to time in one training, so that it fits its slot of the time."""
    return max(FEWEST, min(MOST, int((slot - start) / max(step_seconds, 1e-6)) - WARM_UP))


def random_region(base: Path, percent: float) -> Any:
    """This share of every parameter, at random."""
    import numpy as np

    from cpift import Region
    from cpift.checkpoint.reader import open_checkpoint

    rng, positions = np.random.default_rng(0), {}
    shapes = {name: tensor.shape for name, tensor in open_checkpoint(base).tensors.items()}
    for name, shape in shapes.items():
        chosen = np.flatnonzero(rng.random(math.prod(shape), dtype=np.float32) < percent / 100)
        if len(chosen):
            positions[name] = chosen.astype(np.int32)
    return Region(positions, sum(map(math.prod, shapes.values())))


if __name__ == "__main__":
    run(work)
