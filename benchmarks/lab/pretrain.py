"""Pre-train the organism: a minute each on one core; kept in a folder, by seed and steps."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lab.network import Network
from lab.rows import Rows, pretraining_lines
from lab.training import loss_on, train

STEPS, RATE, BATCH, LINES = 1000, 2e-3, 64, 60_000


def pretrained(network: Network, folder: Path, seed: int, steps: int = STEPS) -> torch.Tensor:
    """The pre-trained model of a seed, made where it is not there yet, float32 (D,)."""
    file = folder / f"base-{network.count}-{steps}-{seed}.pt"
    if file.exists():
        return torch.as_tensor(torch.load(file, weights_only=True))
    lines = pretraining_lines(LINES if steps >= STEPS else 500, f"pretrain/{seed}")

    def draw(rng: torch.Generator) -> Rows:
        return lines.take(torch.randint(0, len(lines), (BATCH,), generator=rng))

    flat, _ = train(network, network.initial(seed), draw, steps=steps, rate=RATE, seed=seed)
    print(f"pre-trained {seed}: loss {loss_on(network, flat, pretraining_lines(200, 'unseen')):.3f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")  # experiments side by side may make the same one
    torch.save(flat, part)
    part.replace(file)
    return flat
