"""Merges of specialists without training: stitched cores, and the field's. Each method has as many trials as stitching.

A merge takes the base, float32 (D,), and the updates of N specialists, float32 (N, D). A new one is a line of ``MERGES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch

from lab.masks import chance, largest, top

Setting = dict[str, float | str]
PERCENTS = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0)
RULES = ("largest", "mean", "order", "sign")
WEIGHTS = (0.05, 0.1)  # ω, tried at the best of the other settings
TRIALS = len(PERCENTS) * len(RULES) + len(WEIGHTS)


@dataclass(frozen=True)
class Given:
    """What is merged.

    Attributes:
        base: parameters of the pre-trained model, (D,).
        updates: of each specialist, (N, D).
        sizes: number of elements of each tensor.
        fishers: Fisher information of each specialist on its own rows, (N, D).
        seed: of what is drawn at random.
        known: masks that several settings share.
    """

    base: torch.Tensor
    updates: torch.Tensor
    sizes: Sequence[int]
    fishers: torch.Tensor
    seed: int
    known: dict[tuple[str, float], torch.Tensor] = field(default_factory=dict)


def by_tensor(scores: torch.Tensor, percent: float, sizes: Sequence[int]) -> torch.Tensor:
    """The top p % of each tensor by itself, at least one element, as mergekit trims; bool (D,)."""
    return torch.cat([
        largest(part, max(1, int(percent * part.numel() / 100))) for part in scores.split(list(sizes))
    ])  # fmt: skip


def cores(given: Given, kind: str, percent: float) -> torch.Tensor:
    """Core regions by update size (over the model, or in each tensor), Fisher information or chance; bool (N, D)."""
    if (kind, percent) not in given.known:
        rows = enumerate(given.updates)
        masks = {
            "update": lambda: [top(u.abs(), percent) for _, u in rows],
            "tensor": lambda: [by_tensor(u.abs(), percent, given.sizes) for _, u in rows],
            "fisher": lambda: [top(given.fishers[i], percent) for i, _ in rows],
            "random": lambda: [chance(u, percent, 1000 * given.seed + i) for i, u in rows],
        }
        given.known[kind, percent] = torch.stack(masks[kind]())
    return given.known[kind, percent]


def at_overlaps(updates: torch.Tensor, claimed: torch.Tensor, rule: str) -> torch.Tensor:
    """What stands at each position that is claimed, zero where none is; the rules of ``cpift.fuse``, and elected signs.

    Args:
        updates: (N, D).
        claimed: bool (N, D).
        rule: ``largest``, ``mean``, ``order`` (the last specialist), or ``sign``: the mean of those of the sign that the
            sum has (TIES, arXiv:2306.01708).
    """
    inside = torch.where(claimed, updates, 0)
    if rule == "mean":
        return inside.sum(0) / claimed.sum(0).clamp(min=1)
    if rule == "sign":
        return elected(inside)
    if rule == "order":
        last = len(claimed) - 1 - claimed.flip(0).int().argmax(0)
        return inside.gather(0, last[None])[0]
    merged, most = torch.zeros_like(updates[0]), torch.zeros_like(updates[0])
    for update, core in zip(updates, claimed, strict=True):  # several times as fast as argmax over specialists
        larger = core & (update.abs() > most)
        merged, most = torch.where(larger, update, merged), torch.where(larger, update.abs(), most)
    return merged


def elected(updates: torch.Tensor, *, summed: bool = False, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Of each position, the (weighted) mean or the sum of the updates that have the sign of their sum, (D,)."""
    sign = torch.where(updates.sum(0) >= 0, 1.0, -1.0)
    agree = updates.sign() == sign
    shares = agree.float() if weights is None else agree * weights[:, None]
    total = (updates * shares).sum(0)
    return total if summed else total / shares.sum(0).clamp(min=1e-6)


def stitched(given: Given, setting: Setting, kind: str = "update") -> torch.Tensor:
    """The base with the cores of all specialists, as ``cpift fuse --weight ω`` gives it."""
    claimed = cores(given, kind, float(setting["p"]))
    merged = given.base + at_overlaps(given.updates, claimed, str(setting["overlap"]))
    if weight := float(setting["ω"]):
        free = ~claimed.any(0)
        rest = interpolated(given.base, given.base + given.updates, free, given.sizes, [weight] * len(given.updates))
        merged = torch.where(free, rest, merged)
    return merged


def interpolated(
    start: torch.Tensor, models: torch.Tensor, free: torch.Tensor, sizes: Sequence[int], weights: Sequence[float]
) -> torch.Tensor:
    """SLERP of weights from ``start`` to one model after the other, over each tensor's free entries.

    Args:
        start: the base or a backbone, (D,).
        models: (N, D).
        free: the entries that are interpolated, bool (D,).
        sizes: number of elements of each tensor.
        weights: ω of each model.

    Returns:
        float32 (D,); entries that are not free are those of ``start``.
    """
    parts, sizes = [], list(sizes)
    for value, tuned, inside in zip(
        start.double().split(sizes), models.double().split(sizes, dim=1), free.split(sizes), strict=True
    ):
        v = value[inside]
        for model, weight in zip(tuned, weights, strict=True):
            b, keep, add = model[inside], 1 - weight, weight
            if v.numel() > 1 and bool(v.any()) and bool(b.any()):
                x, y = v / v.norm(), b / b.norm()
                angle = 2 * math.atan2(float((x - y).norm()), float((x + y).norm()))
                if 1e-4 <= angle <= math.pi - 1e-4:
                    keep, add = (math.sin(part * angle) / math.sin(angle) for part in (keep, add))
            v = keep * v + add * b
        parts.append(value.masked_scatter(inside, v))
    return torch.cat(parts).float()


def summed(given: Given, updates: torch.Tensor, setting: Setting) -> torch.Tensor:
    """The base and λ times what ``form`` makes of sparse updates: all of them, or those of the elected sign."""
    form = str(setting.get("form", "all"))
    merged = updates.sum(0) if form == "all" else elected(updates, summed=form == "sum")
    return given.base + float(setting["λ"]) * merged


def task_arithmetic(given: Given, setting: Setting) -> torch.Tensor:
    """arXiv:2212.04089; the linear soup is λ = 1/N."""
    return summed(given, given.updates, setting)


def ties(given: Given, setting: Setting) -> torch.Tensor:
    """arXiv:2306.01708, trimmed in each tensor as mergekit does."""
    keep = cores(given, "tensor", 100 * float(setting["density"]))
    return summed(given, torch.where(keep, given.updates, 0), setting)


def dare(given: Given, setting: Setting) -> torch.Tensor:
    """arXiv:2311.03099: elements drawn at random, scaled up by 1/density."""
    density, rng = float(setting["density"]), torch.Generator().manual_seed(given.seed)
    keep = torch.rand(given.updates.shape, generator=rng) < density
    return summed(given, torch.where(keep, given.updates / density, 0), setting)


def della(given: Given, setting: Setting) -> torch.Tensor:
    """arXiv:2406.11617: larger updates are kept with a higher probability, within each tensor; scaled as DARE is."""
    density, rng = float(setting["density"]), torch.Generator().manual_seed(given.seed)
    spread = min(0.1, density / 2, (1 - density) / 2)
    if ("ranks", 0.0) not in given.known:
        given.known["ranks", 0.0] = torch.stack([
            torch.cat([p.abs().argsort().argsort() / max(1, p.numel() - 1) for p in update.split(list(given.sizes))])
            for update in given.updates
        ])  # fmt: skip
    rows = []
    for update, ranks in zip(given.updates, given.known["ranks", 0.0], strict=True):
        chances = density - spread + 2 * spread * ranks
        rows.append(torch.where(torch.rand(update.shape, generator=rng) < chances, update / chances, 0))
    return summed(given, torch.stack(rows), setting)


def breadcrumbs(given: Given, setting: Setting) -> torch.Tensor:
    """arXiv:2312.06795: in each tensor the largest γ and the smallest are left out."""
    density, gamma = 100 * float(setting["density"]), 100 * float(setting["γ"])
    keep = cores(given, "tensor", min(100.0, density + gamma)) & ~cores(given, "tensor", gamma)
    return summed(given, torch.where(keep, given.updates, 0), setting)


def sce(given: Given, setting: Setting) -> torch.Tensor:
    """arXiv:2408.07990: positions of the largest variance, weights by squared norm in each tensor, elected signs."""
    parts = []
    for updates in given.updates.split(list(given.sizes), dim=1):
        kept = updates * top(updates.var(0, unbiased=False), 100 * float(setting["density"]))
        squares = kept.square().mean(1)
        parts.append(elected(kept, weights=squares / squares.sum().clamp(min=1e-12)))
    return given.base + float(setting["λ"]) * torch.cat(parts)


def fisher_mean(given: Given, setting: Setting) -> torch.Tensor:
    """arXiv:2111.09832: means weighted by Fisher information, with a floor, and λ times what that gives."""
    shares = given.fishers + float(setting["floor"]) * given.fishers.mean()
    return given.base + float(setting["λ"]) * (shares * given.updates).sum(0) / shares.sum(0)


@dataclass(frozen=True)
class Merge:
    """A way to merge.

    Attributes:
        label: how tables name it.
        made: the merged parameters.
        settings: the trials; stitching has those of ``WEIGHTS`` beside them.
        usual: what people use without tuning, if there is such a thing.
    """

    label: str
    made: Callable[[Given, Setting], torch.Tensor]
    settings: Sequence[Setting]
    usual: Setting | None = None


def grid(**values: Sequence[float | str]) -> list[Setting]:
    """All combinations."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def _signed(densities: Sequence[float]) -> list[Setting]:
    mean = grid(density=densities, form=["mean"], λ=[0.5, 1.0, 2.0])
    return mean + grid(density=densities, form=["sum"], λ=[0.3, 0.6, 1.0])


STITCHES = grid(p=PERCENTS, overlap=RULES, ω=[0.0])
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
MERGES: Mapping[str, Merge] = {
    "stitch": Merge("stitched cores", stitched, STITCHES, {"p": 10.0, "overlap": "largest", "ω": 0.0}),
    "stitch_tensor": Merge("stitched cores, in each tensor", lambda g, s: stitched(g, s, "tensor"), STITCHES),
    "stitch_fisher": Merge("control: cores by Fisher", lambda g, s: stitched(g, s, "fisher"), STITCHES),
    "stitch_random": Merge("control: cores at random", lambda g, s: stitched(g, s, "random"), STITCHES),
    "task_arithmetic": Merge(
        "task arithmetic", task_arithmetic, grid(λ=[round(0.05 * i, 2) for i in range(1, TRIALS + 1)]), {"λ": 0.2}
    ),
    "ties": Merge("TIES", ties, _signed(DENSITIES), {"density": 0.2, "form": "mean", "λ": 1.0}),
    "dare": Merge("DARE", dare, grid(density=DENSITIES, λ=[0.1, 0.2, 0.3, 0.4, 0.6, 1.0])),
    "dare_ties": Merge("DARE-TIES", dare, _signed(DENSITIES), {"density": 0.5, "form": "mean", "λ": 1.0}),
    "della": Merge("DELLA", della, _signed(DENSITIES)),
    "breadcrumbs": Merge(
        "breadcrumbs", breadcrumbs, grid(density=(0.05, 0.1, 0.2, 0.5, 0.9), γ=[0.005, 0.02], λ=[0.3, 0.6, 1.0])
    ),
    "sce": Merge("SCE", sce, grid(density=(0.05, 0.1, 0.2, 0.5, 1.0), λ=[0.3, 0.6, 1.0, 1.5, 2.0, 3.0])),
    "fisher_mean": Merge("Fisher mean", fisher_mean, grid(floor=[0.01, 0.1, 1.0], λ=[0.5 * i for i in range(1, 11)])),
}
