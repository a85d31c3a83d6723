"""M1 and M2: how much of a skill the largest updates hold, and whether collisions can be predicted before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional

from lab.arrivals import Size, Skill, skill_rows
from lab.masks import chance, top
from lab.network import Network
from lab.outcomes import packed
from lab.training import Mixture, drift, gradient, loss_on, right, train

SHARES = (0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0, 70.0, 90.0, 100.0)
CONVERGED, RATE = 120, 2e-3
PAIR_STEPS, EARLY = 60, 10
GRADIENT_ROWS = 256


@dataclass(frozen=True)
class Probes:
    """Specialists of one pre-trained model.

    Attributes:
        network: the model's shape.
        base: the pre-trained parameters.
        seed: of rows and batches.
        size: how many rows.
        steps: of each probe.
    """

    network: Network
    base: torch.Tensor
    seed: int
    size: Size
    steps: int = CONVERGED

    def rows(self, skill: str) -> Skill:
        """Rows of a skill."""
        return skill_rows(skill, self.seed, self.size, str(self.base.device))

    def learn(self, skill: str, start: torch.Tensor, steps: int) -> torch.Tensor:
        """Plain fine-tuning on one skill."""
        draw = Mixture(self.rows(skill).train).batch
        return train(self.network, start, draw, steps=steps, rate=RATE, seed=self.seed)[0]


def held(probes: Probes, skill: str, shares: Sequence[float] = SHARES) -> dict[str, str]:
    """M1: outcomes of the base with part of a specialist's update; keys as ``top/1.0``, ``without/1.0``, ``random/1.0``."""
    base, rows = probes.base, probes.rows(skill).evaluation
    update = probes.learn(skill, base, probes.steps) - base
    outcomes = {"base": packed(right(probes.network, base, rows))}
    for share in shares:
        core = top(update.abs(), share)
        drawn = chance(update, share, probes.seed)
        for name, mask in (("top", core), ("without", ~core), ("random", drawn)):
            model = base + torch.where(mask, update, torch.zeros_like(update))
            outcomes[f"{name}/{share}"] = packed(right(probes.network, model, rows))
    energy = update.square()
    outcomes |= {f"energy/{s}": f"{float(energy[top(update.abs(), s)].sum() / energy.sum()):.4f}" for s in shares}
    return outcomes


class Pairs:
    """M2: all ordered pairs of skills on one pre-trained model."""

    def __init__(self, probes: Probes, steps: int = PAIR_STEPS) -> None:
        self.probes, self.steps = probes, steps

    @cache  # noqa: B019  one object a unit, which ends with the process
    def specialist(self, skill: str) -> torch.Tensor:
        """The model after the first skill."""
        return self.probes.learn(skill, self.probes.base, self.probes.steps)

    @cache  # noqa: B019
    def core(self, skill: str, percent: float) -> torch.Tensor:
        """Core region of a specialist."""
        return top((self.specialist(skill) - self.probes.base).abs(), percent)

    def predictors(self, old: str, new: str) -> dict[str, float]:
        """What can be known before the new skill is trained on the old one's specialist.

        The new skill's specialist, of the base, is known as well: it is a probe.
        """
        p, network = self.probes, self.probes.network
        a, b = self.specialist(old), self.specialist(new)
        u, v = a - p.base, b - p.base
        rows_a, rows_b = p.rows(old).check, p.rows(new).check
        found: dict[str, float] = {}
        for percent in (1.0, 10.0):
            x, y = self.core(old, percent), self.core(new, percent)
            both = x & y
            found[f"overlap_{percent:g}"] = float(both.sum() / (x | y).sum())
            found[f"sign_agreement_{percent:g}"] = float((u[both] * v[both] > 0).float().mean())
        index = torch.arange(min(GRADIENT_ROWS, p.size.train))
        new_gradient = gradient(network, a, p.rows(new).train.take(index))
        old_gradient = gradient(network, p.base, p.rows(old).train.take(index))
        base_gradient = gradient(network, p.base, p.rows(new).train.take(index))
        found["cosine_updates"] = _cosine(u, v)
        found["cosine_gradients_base"] = _cosine(old_gradient, base_gradient)
        found["update_along_new_gradient"] = _cosine(u, new_gradient)
        found["probe_loss_on_old"] = loss_on(network, b, rows_a)
        found["probe_drift_on_old"] = drift(network, p.base, b, rows_a)
        found["old_loss_on_new"] = loss_on(network, a, rows_b)
        found["new_update_norm"] = float(v.norm())
        return {name: round(value, 6) for name, value in found.items()}

    def observed(self, old: str, new: str) -> dict[str, float]:
        """What the old skill loses when the new one is trained: in nats and in points, early and at the end."""
        p, network = self.probes, self.probes.network
        before, rows = self.specialist(old), p.rows(old).evaluation
        start_loss, start = loss_on(network, before, rows), float(right(network, before, rows).mean())
        found = {"before": start}
        for name, steps in (("early", min(EARLY, self.steps)), ("end", self.steps)):
            after = p.learn(new, before, steps)
            found[f"loss_rise_{name}"] = loss_on(network, after, rows) - start_loss
            found[f"points_lost_{name}"] = 100 * (start - float(right(network, after, rows).mean()))
        new_rows = p.rows(new).evaluation
        found["new_right"] = float(right(network, after, new_rows).mean())
        return {name: round(value, 6) for name, value in found.items()}


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(functional.cosine_similarity(a, b, dim=0))


def pairs_of(skills: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All ordered pairs."""
    yield from ((a, b) for a in skills for b in skills if a != b)
