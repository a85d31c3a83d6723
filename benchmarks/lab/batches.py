"""B1: do batches grouped by length hurt multi-task SFT? The same rows in the same number of batches, in other orders."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from lab.arrivals import skill_rows
from lab.rows import EXPLORE, REPORT, Rows, joined
from lab.spending import checked, scores
from lab.training import BATCH, train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.run import Laboratory

STEPS = 200
RATES = (3e-4, 7e-4, 1.5e-3, 3e-3)
LABELS = {
    "random": "random",
    "grouped": "grouped by length",
    "grouped_shuffled": "grouped by length, then batches in random order",
}
MEGABATCH = 50  # batches that are sorted together, as in transformers' LengthGroupedSampler


def batches(lengths: np.ndarray, label: str, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of one batch after the other, epoch after epoch, without replacement within one.

    Grouped: rows are shuffled, cut into parts of fifty batches, and each part is sorted, the longest first.

    Args:
        lengths: of each row, int64 (rows,).
        label: key of ``LABELS``.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(lengths))
        if label != "random":
            size = min(MEGABATCH, max(1, len(order) // (BATCH * 4))) * BATCH
            parts = [order[i : i + size] for i in range(0, len(order), size)]
            order = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in parts])
        whole = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
        yield from rng.permutation(whole) if label == "grouped_shuffled" else whole


def largest_share(chosen: Sequence[np.ndarray], tasks: np.ndarray) -> float:
    """Mean over batches of the share that the most frequent task has."""
    return float(np.mean([np.bincount(tasks[index]).max() / len(index) for index in chosen]))


class Training:
    """Multi-task SFT on five skills from a pre-trained model."""

    def __init__(self, laboratory: Laboratory, unit: int, names: Sequence[str]) -> None:
        self.laboratory, self.seed = laboratory, 100 * unit
        self.base = laboratory.base(unit)
        self.skills = {name: skill_rows(name, self.seed, laboratory.size, laboratory.device) for name in names}
        self.rows: Rows = joined([skill.train for skill in self.skills.values()])
        self.tasks = np.repeat(np.arange(len(names)), laboratory.size.train)
        self.lengths = (self.rows.ids != 0).sum(1).cpu().numpy()

    def run(self, label: str, rate: float) -> tuple[torch.Tensor, int, float]:
        """The trained model, the characters trained on, and the mean share of the most frequent task in a batch."""
        order, chosen = batches(self.lengths, label, self.seed), list[np.ndarray]()

        def draw(_: torch.Generator) -> Rows:
            chosen.append(next(order))
            return self.rows.take(torch.from_numpy(chosen[-1]).to(self.rows.ids.device))

        steps = 3 if self.laboratory.tiny else STEPS
        flat, tokens = train(self.laboratory.network, self.base, draw, steps=steps, rate=rate, seed=self.seed)
        return flat, tokens, largest_share(chosen, self.tasks)


def b1(laboratory: Laboratory, units: int) -> None:
    """Rates first, on the exploring skills; then unit after unit."""
    log, best = laboratory.log("b1"), dict[str, float]()
    trial = Training(laboratory, 0, EXPLORE)
    for label in ("random", "grouped"):
        found = list[tuple[float, float]]()
        for rate in RATES:
            cell = f"b1-tuning/{label}/{rate:g}"
            if cell not in log:
                score = checked(laboratory.network, trial.run(label, rate)[0], trial.skills)
                log.add(cell, {"experiment": "b1-tuning", "unit": 0, "label": label, "rate": rate, "score": score})
                print(cell, f"{score:.3f}", flush=True)
            found.append((float(str(log.done[cell]["score"])), -rate))
        best[label] = -max(found)[1]
    best["grouped_shuffled"] = best["grouped"]
    for unit in range(1, units + 1):
        trial = Training(laboratory, unit, REPORT)
        for label in LABELS:
            cell, began = f"b1/{unit}/{label}", time.perf_counter()
            if cell in log:
                continue
            flat, tokens, share = trial.run(label, best[label])
            log.add(cell, {
                "experiment": "b1", "unit": unit, "model": unit, "label": label, "rate": best[label], "tokens": tokens,
                "largest_share": round(share, 4), "right": scores(laboratory.network, flat, trial.skills),
            })  # fmt: skip
            print(cell, f"{time.perf_counter() - began:.1f} s", flush=True)
