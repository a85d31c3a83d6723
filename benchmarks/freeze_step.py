"""What freezing costs: a training step of a SmolLM2-135M-shaped model with and without, in turn, in one process.

python benchmarks/freeze_step.py [ROUNDS]: prints one line of JSON. Batch of 8 rows of 64 tokens, bf16 autocast, AdamW.
Of 1, 3, 30 and 90 % frozen: the share of a step's time, and bytes that are kept for an element of the model.
python benchmarks/freeze_step.py small [ROUNDS]: the same of a model of 11M parameters on one thread, by processor time.
python benchmarks/freeze_step.py alone: processor time of freezing on one thread, beside that of an AdamW step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cpift.method.freeze import _Frozen, _Masked, freeze
from cpift.method.region import Region

ROUNDS, ROWS, TOKENS = 15, 8, 64
PERCENTS = (1, 3, 30, 90)
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3,
}  # fmt: skip
SMALL = {
    "vocab_size": 8192, "hidden_size": 320, "intermediate_size": 960, "num_hidden_layers": 7, "num_attention_heads": 5,
    "num_key_value_heads": 1,
}  # fmt: skip


def region(model: torch.nn.Module, percent: float) -> Region:
    """A random region of this share."""
    rng = np.random.default_rng(0)
    positions = {}
    for name, parameter in model.named_parameters():
        count = int(parameter.numel() * percent / 100)
        if count:
            positions[name] = np.flatnonzero(rng.random(parameter.numel(), np.float32) < percent / 100).astype(np.int32)
    return Region(positions, sum(p.numel() for p in model.parameters()))


def alone() -> None:
    """Processor time for 4M elements on one thread: a busy machine changes it little."""
    torch.set_num_threads(1)
    layer = torch.nn.Linear(2048, 2048, bias=False)
    layer.weight.grad = torch.randn_like(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4)
    result: dict[str, Any] = {"adamw_ms": least(optimizer.step)}
    for percent in PERCENTS:
        with torch.no_grad(), freeze(layer, region(layer, percent), optimizer) as held:
            (part,) = held._parts
            times = {"clear_ms": least(part.clear_gradient), "restore_ms": least(part.restore)}
            result[f"{percent} %"] = {**times, "bytes": nbytes(part) / layer.weight.numel()}
    print(json.dumps(result))


def least(function: Any) -> float:
    """Milliseconds of processor time of the fastest of ten calls."""
    times = []
    for _ in range(10):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return 1e3 * min(times)


def main(small: bool, rounds: int) -> None:
    clock = time.process_time if small else time.perf_counter  # a busy machine changes processor time little
    if small:
        torch.set_num_threads(1)
    config = LlamaConfig(tie_word_embeddings=True, **(SMALL if small else SHAPE))
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, config.vocab_size, (ROWS, TOKENS))

    def step() -> float:
        began = clock()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return clock() - began

    ways: dict[str, Any] = {"none": nullcontext}
    for percent in PERCENTS:
        held = region(model, percent)
        ways[f"{percent} %"] = lambda held=held: freeze(model, held, optimizer)
    spent = [0.0]
    for name in ("clear_gradient", "restore"):  # all that a step does for freezing happens in these two
        for kind in (_Frozen, _Masked):
            setattr(kind, name, timed(getattr(kind, name), spent, clock))
    times: dict[str, list[float]] = {way: [] for way in ways}
    shares: dict[str, list[float]] = {way: [] for way in ways}
    kept: dict[str, float] = {}
    parameters = sum(p.numel() for p in model.parameters())
    for round_number in range(rounds + 1):
        for way, enter in ways.items():
            with enter() as held:
                if held is not None:
                    kept[way] = sum(nbytes(part) for part in held._parts) / parameters
                spent[0] = 0.0
                taken = step()
            if round_number >= 1:
                times[way].append(taken)
                shares[way].append(spent[0] / (taken - spent[0]))
    result: dict[str, Any] = {"step_seconds": summary(times["none"])}
    for way in kept:
        result[way] = summary(shares[way])
        result[f"{way} bytes"] = kept[way]
        # Pair by pair, so that a drift of the machine's speed cancels; as noisy as the machine all the same.
        result[f"{way} paired"] = statistics.median(a / b - 1 for a, b in zip(times[way], times["none"], strict=True))
    print(json.dumps(result))


def nbytes(part: Any) -> int:
    """Of the tensors that are kept for a parameter, itself apart."""
    held = (value for name, value in vars(part).items() if name != "parameter" and isinstance(value, torch.Tensor))
    return sum(value.nbytes for value in held)


def summary(values: list[float]) -> list[float]:
    return [min(values), statistics.median(values), max(values)]


def timed(function: Any, spent: list[float], clock: Callable[[], float]) -> Any:
    def wrapper(*args: Any) -> None:
        began = clock()
        function(*args)
        spent[0] += clock() - began

    return wrapper


if __name__ == "__main__":
    words = sys.argv[1:]
    if words == ["alone"]:
        alone()
    else:
        numbers = [int(word) for word in words if word != "small"]
        main("small" in words, numbers[0] if numbers else ROUNDS)
