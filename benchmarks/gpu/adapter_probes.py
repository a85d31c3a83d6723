"""Probes as whole models and as LoRA of rank 8 and 64: regions, agreement by module beside chance, and loss.

The same rows, steps and seed for each. LoRA trains at ten times the learning rate of the whole model.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inputs import model_folder, model_name, model_needs, some_rows
from step import Step, need, run

NEEDS = ("trl:SFTTrainer", "datasets", "pydantic", "peft", "xxhash", "cpift.train.fine_tune", "cpift.method.identify")
RANKS = (8, 64)
RATE, LORA_RATE = 1e-4, 1e-3
HELD_OUT = 100  # rows
MOST_STEPS = 200
MAX_LENGTH = 512


def work(step: Step) -> None:
    need(*NEEDS, *model_needs(step))
    place = step.scratch / "adapter-probes"
    try:
        _compare(step, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _compare(step: Step, place: Path) -> None:
    from cpift.evaluation.opened import Opened
    from cpift.evaluation.scores import EvalTask, evaluate
    from cpift.method.identify import identify

    base, record = model_folder(step), step.record
    held_out = 4 if step.tiny else HELD_OUT
    rows = some_rows(step, held_out + (16 if step.tiny else 2000))
    learnt = {repr(row) for row in rows[held_out:]}
    tasks = {"held out": EvalTask([row for row in rows[:held_out] if repr(row) not in learnt], "loss")}
    if not tasks["held out"].rows:
        tasks = {"trained rows": EvalTask(rows[:held_out], "loss")}
        record.add("rows", len(rows), note="repeated, so that losses are those of trained rows")
    steps = _steps(step, base, rows[held_out:], place)
    record.add(
        "steps of each probe", steps, note=f"{model_name(step)}; 1 % regions; whole model {RATE}, LoRA {LORA_RATE}"
    )
    probes: dict[str, Path] = {}
    for name, rank in {"full": None, **{f"LoRA r = {rank}": rank for rank in RANKS}}.items():
        began = time.monotonic()
        probes[name] = _train(base, rows[held_out:], place / name, steps, rank)
        record.add(f"{name}: training", time.monotonic() - began, "s")
    record.add("base: loss", _loss(evaluate(base, tasks, max_length=MAX_LENGTH)), "nats")
    for name, probe in probes.items():
        record.add(f"{name}: loss", _loss(evaluate(Opened(probe, base=base), tasks, max_length=MAX_LENGTH)), "nats")
    began = time.monotonic()
    regions = identify(base, probes, "1")
    record.add("identify", time.monotonic() - began, "s")
    sizes = _sizes(base)
    for name in list(probes)[1:]:
        _agreement(step, name, regions["full"], regions[name], sizes)


def _steps(step: Step, base: Path, rows: list[Any], place: Path) -> int:
    """As many as half of the time allows for three probes, by the speed of a short one."""
    if step.tiny:
        return 3
    few = 5
    began = time.monotonic()
    _train(base, rows, place / "few", few, None)
    each = (time.monotonic() - began) / few  # loading and saving included: rather too much than too little
    shutil.rmtree(place / "few")
    return max(few, min(MOST_STEPS, int(0.5 * step.left() / (1 + len(RANKS)) / each)))


def _train(base: Path, rows: list[Any], out: Path, steps: int, rank: int | None) -> Path:
    from cpift.data.encoding import encode_all
    from cpift.recipe.adapter import Adapter
    from cpift.train.fine_tune import fine_tune
    from cpift.train.models import load_tokenizer
    from cpift.train.spec import TrainSpec

    encoded, _ = encode_all(rows, load_tokenizer(base), MAX_LENGTH)
    settings = {"learning_rate": RATE if rank is None else LORA_RATE, "max_length": MAX_LENGTH, "save_strategy": "no"}
    out.mkdir(parents=True)
    fine_tune(base, encoded, out, TrainSpec(settings, steps, 0, adapter=None if rank is None else Adapter(r=rank)))
    return out


def _loss(scores: Mapping[str, Any]) -> float:
    return float(next(iter(scores.values())).score)


def _sizes(base: Path) -> dict[str, int]:
    from cpift.checkpoint.reader import open_checkpoint

    return {name: math.prod(tensor.shape) for name, tensor in open_checkpoint(base).tensors.items()}


def _agreement(step: Step, name: str, full: Any, other: Any, sizes: Mapping[str, int]) -> None:
    """Jaccard of all positions and of each kind of module, beside chance."""
    from agreement import agreement

    kinds = agreement(full, other, sizes)
    if "all" not in kinds:
        step.record.fault(f"{name}: a region came out empty")
    for kind, part in kinds.items():
        note = f"by chance {part.chance:.3g}; {part.first} and {part.second} positions"
        step.record.add(f"{name}: Jaccard with full, {kind}", part.jaccard, note=note)


if __name__ == "__main__":
    run(work)
