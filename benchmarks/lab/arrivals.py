"""Skills that arrive one after the other: a sequence of them, under one method, is one cell of E1 and E2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from lab.masks import average, transplanted
from lab.methods import METHODS, Arrival, measured_fisher
from lab.network import Network
from lab.outcomes import Stage, packed
from lab.rows import Rows, joined, pretraining_lines, task_rows
from lab.training import Mixture, drift, loss_on, right, train

FIRST_RATE = 2e-3  # of the first skill: in every method it is learnt by plain fine-tuning, as in a model that is given
CHECKED = 64  # rows of a skill that are neither trained on nor evaluated


@dataclass(frozen=True)
class Size:
    """How large the experiments are.

    Attributes:
        train: training rows of a skill.
        evaluated: evaluation rows of a skill.
        text: lines of pre-training text on which general ability is measured.
    """

    train: int = 1000
    evaluated: int = 128
    text: int = 128


@dataclass(frozen=True)
class Cell:
    """One sequence of arrivals.

    Attributes:
        method: key of ``METHODS``.
        order: the skills.
        kept: rows kept of each earlier skill.
        rate: learning rate of the arrivals after the first.
        steps: of an arrival.
        seed: of rows and batches.
        first_steps: of the first skill, by which it is learnt.
    """

    method: str
    order: tuple[str, ...]
    kept: int
    rate: float
    steps: int
    seed: int
    first_steps: int = 200


@dataclass(frozen=True)
class Skill:
    """Rows of a skill: to train on, to predict collisions from, to evaluate."""

    train: Rows
    check: Rows
    evaluation: Rows


@cache
def skill_rows(name: str, seed: int, size: Size, device: str) -> Skill:
    """Rows of a skill; evaluation rows are the same for all seeds, and no word of theirs is trained on."""
    asked, evaluation = task_rows(name, size.evaluated, "eval")
    seen, check = task_rows(name, CHECKED, f"check/{seed}", frozenset(asked))
    _, training = task_rows(name, size.train, f"train/{seed}", frozenset(asked) | frozenset(seen))
    parts = (training, check, evaluation)
    return Skill(*(Rows(part.ids.to(device), part.counted.to(device)) for part in parts))


class Run:
    """The state of a sequence while it runs."""

    def __init__(self, network: Network, base: torch.Tensor, cell: Cell, size: Size) -> None:
        self.network, self.base, self.cell, self.size = network, base, cell, size
        self.method, self.device = METHODS[cell.method], str(base.device)
        self.updates: list[torch.Tensor] = []
        self.fishers: list[torch.Tensor] = []
        text = pretraining_lines(size.text, "unseen")
        self.text = Rows(text.ids.to(self.device), text.counted.to(self.device))

    def skill(self, name: str) -> Skill:
        """Rows of a skill."""
        return skill_rows(name, self.cell.seed, self.size, self.device)

    def run(self, first: torch.Tensor | None = None) -> tuple[list[Stage], torch.Tensor]:
        """All arrivals.

        Args:
            first: the model after the first skill, where it is known.

        Returns:
            One entry an arrival, and the model after the first one.
        """
        flat, stages = self.base, list[Stage]()
        for i, name in enumerate(self.cell.order):
            before = flat
            if i == 0:
                flat, tokens = (first, 0) if first is not None else self.learn_first()
                first = flat
            else:
                flat, tokens = self.arrive(before, i)
            self.updates.append(flat - before)
            if self.method.needs_fisher:
                self.fishers.append(measured_fisher(self.network, flat, self.skill(name).train))
            stages.append(self.stage(flat, i, tokens))
        assert first is not None
        return stages, first

    def learn_first(self) -> tuple[torch.Tensor, int]:
        """The first skill: plain fine-tuning, in every method."""
        draw = Mixture(self.skill(self.cell.order[0]).train).batch
        steps, seed = self.cell.first_steps, self.cell.seed
        return train(self.network, self.base, draw, steps=steps, rate=FIRST_RATE, seed=seed)

    def arrive(self, before: torch.Tensor, i: int) -> tuple[torch.Tensor, int]:
        """A further skill, as the method has it."""
        cell, method, name = self.cell, self.method, self.cell.order[i]
        kept = None
        if cell.kept:
            index = torch.arange(cell.kept)
            kept = joined([self.skill(old).train.take(index) for old in cell.order[:i]])
        new = self.skill(name).train
        arrival = Arrival(self.network, before, new, kept, self.updates, self.fishers, cell.seed + i)
        frozen = method.frozen(arrival) if method.frozen else None
        after, tokens = train(
            self.network, before, Mixture(new, kept).batch, steps=max(1, cell.steps - method.fewer_steps),
            rate=cell.rate, seed=cell.seed + i, frozen=frozen,
            penalty=method.penalty(arrival) if method.penalty else None,
            project=method.project(arrival) if method.project else None,
        )  # fmt: skip
        result = after
        if method.weight < 1:
            result = average(before, after, method.weight)
        if method.transplant is not None:
            result = transplanted(result, before, after, self.updates, method.transplant)
        return result, tokens + arrival.extra_tokens

    def stage(self, flat: torch.Tensor, i: int, tokens: int) -> Stage:
        """What the model can do after an arrival."""
        seen = self.cell.order[: i + 1]
        return {
            "task": self.cell.order[i],
            "right": {t: packed(right(self.network, flat, self.skill(t).evaluation)) for t in seen},
            "tokens": tokens,
            "text_loss": round(loss_on(self.network, flat, self.text), 4),
            "drift": round(drift(self.network, self.base, flat, self.text), 4),
        }


def orders(skills: Sequence[str], unit: int) -> tuple[str, ...]:
    """The order of a unit: a permutation drawn by its number."""
    rng = torch.Generator().manual_seed(unit)
    return tuple(skills[i] for i in torch.randperm(len(skills), generator=rng).tolist())
