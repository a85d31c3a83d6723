"""Random models of Qwen3's shape with 1B and 3B parameters: probe, identify, fuse and a frozen refine, beside the plan.

Memory is compared with what ``plan --gpus`` computes. The time of refine is predicted from the probe's tokens/s.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from inputs import some_rows
from step import Step, beside, device, is_cuda, need, peak, release, reset_peak, run

NEEDS = ("trl:SFTTrainer", "datasets", "pydantic", "transformers:Qwen3Config", "cpift.train.fine_tune")
# hidden, intermediate, layers, heads, key-value heads, vocabulary; heads are 128 wide, tiny ones 16
SIZES = {
    "tiny": (64, 128, 2, 4, 2, 512),
    "1B": (1536, 4608, 24, 12, 4, 151936),
    "3B": (2560, 8192, 32, 20, 4, 151936),
}
STEPS, BATCH, MAX_LENGTH = 12, 8, 512
MEMORY_GOAL, TIME_GOAL = 0.15, 0.25  # relative deviation
MODELS = 3  # fp32 checkpoints on the disk at a time


def work(step: Step) -> None:
    need(*NEEDS)
    began, last = time.monotonic(), 0.0
    for size in ("tiny",) if step.tiny else ("1B", "3B"):
        place = step.scratch / f"size-{size}"
        if 3 * last > step.left():  # three times the parameters
            step.record.leave_out(size, f"it would take {3 * last:.0f} s; {step.left():.0f} are left")
            continue
        try:
            _size(step, size, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
            release()
        last = time.monotonic() - began


def _size(step: Step, size: str, place: Path) -> None:
    from cpift.checkpoint.reader import open_checkpoint
    from cpift.data.encoding import encode_all
    from cpift.method.fuse import fuse
    from cpift.method.identify import identify
    from cpift.planning.memory import shape_of
    from cpift.train.models import load_tokenizer

    place.mkdir(parents=True)
    base, count = place / "base", _make(place / "base", size)
    step.record.add(f"{size}: parameters", count)
    needed = MODELS * 4 * count * 1.1
    if needed > shutil.disk_usage(place).free:
        step.record.leave_out(f"{size}: stages", f"they need {needed / 1e9:.0f} GB of disk in the scratch folder")
        return
    rows, _ = encode_all(some_rows(step, 32 if step.tiny else 256), load_tokenizer(base), MAX_LENGTH)
    opened = open_checkpoint(base)
    shape = shape_of({name: tensor.size for name, tensor in opened.tensors.items()}, opened.config)
    speed = _train(step, f"{size}: probe", base, rows, place / "probe", shape, None, None)
    began = time.perf_counter()
    region = identify(base, {"probe": place / "probe"}, "1")["probe"]
    step.record.add(f"{size}: identify", time.perf_counter() - began, "s")
    began = time.perf_counter()
    fuse(base, {"probe": place / "probe"}, place / "fused", regions={"probe": region})
    step.record.add(f"{size}: fuse", time.perf_counter() - began, "s")
    shutil.rmtree(place / "probe")
    _train(step, f"{size}: refine", place / "fused", rows, place / "refined", shape, region, speed)


def _make(out: Path, size: str) -> int:
    """A random checkpoint with the tests' tiny tokenizer; its parameters, tied ones once."""
    import tiny
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hidden, intermediate, layers, heads, shared, vocabulary = SIZES[size]
    words = tiny.tokenizer()
    torch.manual_seed(0)
    with device():
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=shared, head_dim=16 if size == "tiny" else 128,
                tie_word_embeddings=True, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
            )
        )  # fmt: skip
    model.save_pretrained(out)
    words.save_pretrained(out)
    count: int = sum(parameter.numel() for parameter in model.parameters())
    del model
    release()
    return count


def _train(
    step: Step, what: str, start: Path, rows: list[Any], out: Path, shape: Any, region: Any, speed: float | None
) -> float:
    """Train a few steps; tokens/s. Memory and, where a speed is given, time beside what is predicted."""
    from cpift.planning import memory
    from cpift.train.fine_tune import fine_tune
    from cpift.train.spec import TrainSpec

    out.mkdir()
    settings = {"per_device_train_batch_size": BATCH, "max_length": MAX_LENGTH, "save_strategy": "no"}
    release()
    reset_peak()
    done = fine_tune(start, rows, out, TrainSpec(settings, 3 if step.tiny else STEPS, 0), frozen=region)
    most, longest = peak(), max(len(row.input_ids) for row in rows)
    passes = memory.Step(BATCH * longest, bf16=done.precision != "fp32", frozen=0 if region is None else region.count)
    planned = memory.training(shape, passes, 1, "data parallel").peak
    step.record.add(f"{what}: seconds of training", done.train_seconds, "s", f"{done.steps} steps of {BATCH} rows")
    step.record.add(f"{what}: planned memory", planned / 2**30, "GiB")
    if is_cuda():
        step.record.add(f"{what}: measured memory", most / 2**30, "GiB", beside(most, planned, MEMORY_GOAL))
    else:
        step.record.leave_out(f"{what}: measured memory", "a processor has no device memory to count")
    if speed is not None:
        predicted = done.tokens / speed
        step.record.add(f"{what}: predicted time", predicted, "s", beside(done.train_seconds, predicted, TIME_GOAL))
    return done.tokens / done.train_seconds


if __name__ == "__main__":
    run(work)
