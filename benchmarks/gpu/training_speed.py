"""Training tokens/s of a probe by cpift beside TRL's SFTTrainer alone, on the same rows with the same settings.

At batch 8, and at the largest batch that fits, found by doubling until the device's memory is full or the time is up.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inputs import model_folder, model_name, some_rows
from step import Step, is_cuda, is_out_of_memory, need, peak, release, reset_peak, run, synchronize

NEEDS = ("trl:SFTTrainer", "datasets:Dataset", "pydantic", "xxhash", "cpift.train.fine_tune")
WARM_UP = 2  # steps that are not timed
BATCH = 8
LIMIT = 4096  # rows
MAX_LENGTH = 512
GOAL = 0.03  # as much slower than TRL alone


@dataclass(frozen=True)
class Speed:
    tokens_per_second: float
    step_seconds: float
    peak: int


class Watch:
    """Tokens and time between the end of the warm-up and the end of the last step."""

    def __init__(self, steps: int) -> None:
        self._at = (min(WARM_UP, steps - 1), steps)
        self._seen: list[tuple[float, int]] = []

    def __call__(self, number: int, tokens: int) -> None:
        if number in self._at:
            synchronize()
            self._seen.append((time.perf_counter(), tokens))

    def speed(self) -> Speed:
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return Speed((last - first) / (end - start), (end - start) / (self._at[1] - self._at[0]), peak())


class Trial:
    """Short trainings of one model on one set of rows, by either way."""

    def __init__(self, step: Step) -> None:
        from cpift.data.encoding import encode_all
        from cpift.train.models import load_tokenizer

        self.base = model_folder(step)
        self._out = step.scratch / "trained"
        rows = some_rows(step, 16 if step.tiny else 2000)
        encoded, _ = encode_all(rows, load_tokenizer(self.base), MAX_LENGTH)
        self.rows: Sequence[Any] = sorted(encoded, key=lambda row: -len(row.input_ids))

    def settings(self, batch: int) -> dict[str, Any]:
        """Fields of SFTConfig that both get."""
        import torch

        return {
            "per_device_train_batch_size": batch, "learning_rate": 1e-5, "max_length": MAX_LENGTH, "logging_steps": 10,
            "bf16": is_cuda() and torch.cuda.is_bf16_supported(), "use_cpu": not torch.accelerator.is_available(),
            "include_num_input_tokens_seen": "non_padding", "save_strategy": "no",
        }  # fmt: skip

    def take(self, batch: int, steps: int) -> list[Any]:
        """Rows to train on, several batches of them; for the fewest steps only the longest row.

        The trainer begins anew where they end.
        """
        if steps <= WARM_UP + 1:
            return list(self.rows[:1]) * batch
        return list(self.rows) * -(-min(steps, 4) * batch // len(self.rows))

    def cpift(self, batch: int, steps: int, frozen: Any = None) -> Speed:
        """By the package, with a region frozen or without."""
        from cpift.train.fine_tune import fine_tune
        from cpift.train.spec import TrainSpec

        watch = Watch(steps)
        release()
        reset_peak()

        def tick(event: Mapping[str, Any]) -> None:
            watch(int(event["step"]), int(event["tokens"]))

        shutil.rmtree(self._out, ignore_errors=True)
        fine_tune(
            self.base, self.take(batch, steps), self._out, TrainSpec(self.settings(batch), steps, 0),
            frozen=frozen, tick=tick,
        )  # fmt: skip
        return watch.speed()

    def trl(self, batch: int, steps: int) -> Speed:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        from cpift.train.config import DEFAULTS

        watch = Watch(steps)
        release()
        reset_peak()

        class Tick(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                watch(state.global_step, int(state.num_input_tokens_seen))

        # A key that this version does not know is one that cpift has another name for; both names are off.
        defaults = {key: value for key, value in DEFAULTS.items() if key in SFTConfig.__dataclass_fields__}
        defaults |= {"gradient_checkpointing": False} if len(defaults) < len(DEFAULTS) else {}
        config = SFTConfig(
            **{**defaults, **self.settings(batch)}, output_dir=str(self._out), max_steps=steps, seed=0, data_seed=0,
            disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        data = Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in self.take(batch, steps)])
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        words = AutoTokenizer.from_pretrained(self.base)
        SFTTrainer(model, config, train_dataset=data, processing_class=words, callbacks=[Tick()]).train()
        return watch.speed()


def work(step: Step) -> None:
    need(*NEEDS)
    trial = Trial(step)
    step.record.add("model", model_name(step))
    mean = statistics.mean(len(row.input_ids) for row in trial.rows)
    step.record.add(
        "tokens of a row", mean, note=f"of {len(trial.rows)} rows; the longest {len(trial.rows[0].input_ids)}"
    )
    began = time.monotonic()
    first = trial.cpift(BATCH, WARM_UP + 2)
    start = time.monotonic() - began - 4 * first.step_seconds  # load, set up, save
    _compare(step, trial, BATCH, first.step_seconds, start, share=0.35)
    largest = _largest_batch(step, trial)
    if largest and largest > BATCH:
        began = time.monotonic()
        again = trial.cpift(largest, WARM_UP + 2) if not step.tiny else first
        _compare(step, trial, largest, again.step_seconds, max(start, 0.0), share=0.9)


def _compare(step: Step, trial: Trial, batch: int, step_seconds: float, start: float, share: float) -> None:
    """Both ways in turn, twice if the time allows."""
    if step.left() < 2 * (start + (WARM_UP + 2) * step_seconds):
        step.record.leave_out(f"batch {batch}: cpift beside TRL alone", "the time was up")
        return
    until = time.monotonic() + share * step.left()
    slot = share * step.left() / 4 - start
    steps = 4 if step.tiny else max(WARM_UP + 2, min(100, int(slot / max(step_seconds, 1e-6))))
    found: dict[str, list[Speed]] = {"cpift": [], "TRL alone": []}
    ways: dict[str, Callable[[int, int], Speed]] = {"cpift": trial.cpift, "TRL alone": trial.trl}
    for number in range(1 if step.tiny else 2):
        if number and time.monotonic() + 2 * (start + steps * step_seconds) > until:
            break
        for way, train in ways.items():
            try:
                found[way].append(train(batch, steps))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                step.record.leave_out(f"batch {batch}: cpift beside TRL alone", f"{way}: out of memory")
                return
    speeds = {way: statistics.median(s.tokens_per_second for s in some) for way, some in found.items()}
    for way, some in found.items():
        note = f"step {some[-1].step_seconds * 1e3:.1f} ms; {len(some)} times {steps - WARM_UP} steps"
        if is_cuda():
            note += f"; peak on the device {max(s.peak for s in some) / 1e9:.2f} GB"
        step.record.add(f"batch {batch}: {way}", speeds[way], "tokens/s", note)
    apart = speeds["cpift"] / speeds["TRL alone"] - 1
    reached = "reached" if apart > -GOAL else "missed"
    step.record.add(f"batch {batch}: cpift against TRL alone", 100 * apart, "%", f"goal within {GOAL:.0%}: {reached}")


def _largest_batch(step: Step, trial: Trial) -> int | None:
    """By doubling, on the longest row: the last batch that fits. The reason why it went no further is recorded."""
    batch, fits, why = BATCH, None, ""
    until = time.monotonic() + 0.5 * step.left()
    limit = 2 * BATCH if step.tiny else LIMIT if is_cuda() else 4 * BATCH
    while not why:
        try:
            speed = trial.cpift(batch, WARM_UP + 1)
        except Exception as error:  # of torch, or what the package makes of it
            if not is_out_of_memory(error):
                raise
            step.record.add(
                f"batch {batch} of the longest row", "out of memory", note=" ".join(str(error).split())[:200]
            )
            why = "the device's memory is full"
            break
        note = f"{speed.step_seconds * 1e3:.0f} ms a step"
        if is_cuda():
            note += f"; peak on the device {speed.peak / 1e9:.2f} GB"
        step.record.add(f"batch {batch} of the longest row", speed.tokens_per_second, "tokens/s", note)
        fits = batch
        if 2 * batch > limit:
            why = f"no larger one than {limit} was tried"
        elif time.monotonic() > until:
            why = "the time for this search was up"
        batch = _next(batch, speed.peak, limit)
    step.record.add("largest batch that fits", fits, note=why)
    return fits


_peaks: dict[int, int] = {}


def _next(batch: int, most: int, limit: int) -> int:
    """Twice the batch; or, from two peaks, half of what the memory should hold, which saves tries."""
    _peaks[batch] = most
    if not is_cuda() or len(_peaks) < 2:
        return 2 * batch
    import torch

    (low, a), (high, b) = sorted(_peaks.items())[-2:]
    a_row = max((b - a) / (high - low), 1.0)
    room = torch.cuda.get_device_properties(0).total_memory * 0.9
    whole = int((room - b) / a_row) + high
    while 2 * batch <= whole // 2:
        batch *= 2
    return min(2 * batch, limit)


if __name__ == "__main__":
    run(work)
