"""Does bf16 help on this processor, and memory that is kept between steps? Matrix products, and training steps of a
model of SmolLM2-135M's shape, with and without.

python benchmarks/precision.py
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cpift.train.malloc import kept_memory

SHAPES = ((480, 576, 1536), (480, 1536, 576), (480, 576, 49152))
ROWS, TOKENS, RUNS = 8, 60, 5


def seconds(work: Callable[[], object], runs: int = RUNS) -> list[float]:
    work()
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found


def told(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main() -> None:
    print(
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, AMX: {torch.cpu._is_amx_tile_supported()}"
    )
    for m, k, n in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
            rates = [2e-9 * m * k * n / s for s in seconds(lambda a=a, b=b: torch.nn.functional.linear(a, b))]  # type: ignore[misc]
            print(f"{m} × {k} × {n} {str(dtype)[6:]}: {told(rates)} GFLOP/s")
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    model, ids = LlamaForCausalLM(config), torch.randint(0, 49152, (ROWS, TOKENS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for half, kept in itertools.product((False, True), (False, True)):

        def step(half: bool = half) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        with kept_memory() if kept else nullcontext():
            rates = [ROWS * TOKENS / s for s in seconds(step)]
        print(
            f"training, {'bf16 autocast' if half else 'fp32'}, memory {'kept' if kept else 'not kept'}: {told(rates)} tokens/s"
        )


if __name__ == "__main__":
    main()
