"""Pre-train the organism: a minute each on one core; kept in a folder, by seed and steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from lab.network import Network
from lab.rows import pretraining_lines
from lab.training import Mixture, loss_on, train

STEPS, RATE, BATCH, LINES = 1000, 2e-3, 64, 60_000


def pretrained(network: Network, folder: Path, seed: int, steps: int = STEPS) -> torch.Tensor:
    """The pre-trained model of a seed, made where it is not there yet, float32 (D,)."""

    def make() -> torch.Tensor:
        mixture = Mixture(pretraining_lines(LINES if steps >= STEPS else 500, f"pretrain/{seed}"))
        start = network.initial(seed)
        flat, _ = train(network, start, lambda rng: mixture.batch(rng, BATCH), steps=steps, rate=RATE, seed=seed)
        print(f"pre-trained {seed}: loss {loss_on(network, flat, pretraining_lines(200, 'unseen')):.3f}", flush=True)
        return flat

    return kept(folder / f"base-{network.count}-{steps}-{seed}.pt", make)


def kept(file: Path, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What a file holds; made and written where it is not there yet, whole or not at all."""
    if file.exists():
        return torch.as_tensor(torch.load(file, weights_only=True))
    flat = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")  # experiments side by side may make the same one
    torch.save(flat, part)
    part.replace(file)
    return flat
