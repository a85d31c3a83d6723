"""Merges of a language model's specialists: the laboratory's own, some tensors at a time, so that memory holds little else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lab.masks import alike, top
from lab.merges import MERGES, Given, Setting, by_tensor

PIECE = 16_000_000  # elements merged at a time, whole tensors
MASKED = {"stitch": "update", "stitch_random": "random", "ties": "tensor"}  # merges whose masks are of the whole model


class Merging:
    """The merges of a unit's specialists, some tensors at a time, so that memory holds little beside them.

    Attributes:
        base: parameters of the model before, (D,).
        updates: of each specialist, (N, D).
    """

    def __init__(self, base: torch.Tensor, updates: torch.Tensor, sizes: Sequence[int], unit: int) -> None:
        self.base, self.updates, self.sizes, self.unit = base, updates, list(sizes), unit
        self.pieces = [
            (begin, end, Given(base[begin:end], updates[:, begin:end], part, updates[:0], 100 * unit + i))
            for i, (begin, end, part) in enumerate(pieces(self.sizes))
        ]
        self.shown: tuple[str, float] | None = None

    def made(self, label: str, setting: Setting) -> torch.Tensor:
        """The merged parameters, (D,)."""
        self.show(label, setting)
        return torch.cat([MERGES[label].made(given, setting) for _, _, given in self.pieces])

    def show(self, label: str, setting: Setting) -> None:
        """Give the pieces the masks of a setting. One setting's at a time are in memory."""
        kind = MASKED.get(label, "")
        percent = 100 * float(setting["density"]) if label == "ties" else float(setting.get("p", 0.0))
        if self.shown == (kind, percent):
            return
        self.shown = (kind, percent)
        for _, _, given in self.pieces:
            given.known.clear()
        for i in range(len(self.updates)) if kind else ():
            mask = self.mask(i, kind, percent)
            for begin, end, given in self.pieces:
                masks = given.known.setdefault((kind, percent), torch.zeros(given.updates.shape, dtype=torch.bool))
                masks[i] = mask[begin:end]

    def mask(self, i: int, kind: str, percent: float) -> torch.Tensor:
        """A specialist's core: of the whole model, of each tensor, or at random with as many in each tensor; bool (D,)."""
        size = self.updates[i].abs()
        if kind == "tensor":
            return by_tensor(size, percent, self.sizes)
        core = top(size, percent)
        return core if kind == "update" else alike(core, self.sizes, 1000 * self.unit + i)


def pieces(sizes: Sequence[int]) -> Iterator[tuple[int, int, list[int]]]:
    """Begin, end and sizes of runs of whole tensors, none longer than ``PIECE`` unless it is a single one."""
    begin, part = 0, list[int]()
    for size in sizes:
        if part and sum(part) + size > PIECE:
            yield begin, begin + sum(part), part
            begin, part = begin + sum(part), []
        part.append(size)
    yield begin, begin + sum(part), part
