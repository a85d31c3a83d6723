"""Tables of M1 and M2, which look at specialists: what their updates hold, and what predicts a collision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from cpift.compare.units import Estimate, over_units
from lab.contrasts import Cell, cells, shown
from lab.probes import EARLY
from lab.tuning import share_right

PREDICTORS = {
    "overlap_1": "overlap of the cores, 1 %",
    "overlap_10": "overlap of the cores, 10 %",
    "sign_agreement_10": "sign agreement in both cores, 10 %",
    "cosine_updates": "cosine of the updates",
    "cosine_gradients_base": "cosine of the gradients at the base",
    "update_along_new_gradient": "cosine of the old update and the new gradient",
    "probe_loss_on_old": "loss of the new probe on old rows",
    "probe_drift_on_old": "KL of the new probe on old rows",
    "old_loss_on_new": "loss of the old model on new rows",
    "new_update_norm": "trivial: size of the new probe's update",
}


def specialists() -> list[list[dict[str, str]]]:
    """Outcomes of M1, by model; models that are finished."""
    models: dict[int, list[dict[str, str]]] = {}
    for cell in cells("m1"):
        models.setdefault(int(cell["model"]), []).append(cell["outcomes"])
    most = max(map(len, models.values()))
    return [found for found in models.values() if len(found) == most]


def m1() -> Iterator[str]:
    """How much of a skill the largest updates hold; a unit is the mean over the skills of one model."""
    whole = specialists()
    most = len(whole[0])
    shares = [key.split("/")[1] for key in whole[0][0] if key.startswith("top/")]

    def scores(key: str) -> list[float]:
        return [100 * fmean(share_right(o[key]) for o in found) for found in whole]

    yield f"{len(whole)} models, {most} skills each; the whole update scores {fmean(scores('top/100.0')):.1f}, the base {fmean(scores('base')):.1f}.\n"
    yield "| p, % | share of squared norm, % | top p % alone | p % at random alone | without the top p % | top minus random |"
    yield "|---|---|---|---|---|---|"
    for share in shares:
        top, drawn = scores(f"top/{share}"), scores(f"random/{share}")
        energy = 100 * fmean(float(o[f"energy/{share}"]) for found in whole for o in found)
        gap = over_units([a - b for a, b in zip(top, drawn, strict=True)])
        rest = fmean(scores(f"without/{share}"))
        yield f"| {float(share):g} | {energy:.1f} | {fmean(top):.1f} | {fmean(drawn):.1f} | {rest:.1f} | {shown(gap)} |"


def whole_models() -> list[Cell]:
    """Pairs of M2, of models that are finished."""
    units: dict[int, list[Cell]] = {}
    for cell in cells("m2"):
        units.setdefault(int(cell["unit"]), []).append(cell)
    most = max(map(len, units.values()))
    return [cell for found in units.values() if len(found) == most for cell in found]


def m2() -> Iterator[str]:
    """Rank correlations of predictors with what the old skill loses; with an interval over models or old skills."""
    pairs = whole_models()
    models = len({cell["model"] for cell in pairs})
    most = len(pairs) // models
    points = fmean(cell["observed"]["points_lost_end"] for cell in pairs)
    early = fmean(cell["observed"]["points_lost_early"] for cell in pairs)
    yield (
        f"{models} models, {most} ordered pairs each. After {EARLY} steps the old skill has lost {early:.1f} points, at the end "
        f"{points:.1f}. Intervals are over the old skills: within each, the new skills are ranked.\n"
    )
    yield "| predictor | with the rise of the old loss, all pairs | within an old skill | with the early rise, within an old skill | with the points lost, within an old skill |"
    yield "|---|---|---|---|---|"
    for key, label in PREDICTORS.items():
        whole = rank_correlation(*columns(pairs, key, "loss_rise_end"))
        seen = ("loss_rise_end", "loss_rise_early", "points_lost_end")
        cells_shown = [shown(within(pairs, key, observed), 2) for observed in seen]
        yield f"| {label} | {whole:+.2f} | {' | '.join(cells_shown)} |"


def columns(pairs: Sequence[Cell], predictor: str, observed: str) -> tuple[np.ndarray, np.ndarray]:
    """A predictor and an observation, of each pair."""
    x = np.array([cell["predictors"][predictor] for cell in pairs], float)
    y = np.array([cell["observed"][observed] for cell in pairs], float)
    kept = np.isfinite(x) & np.isfinite(y)
    return x[kept], y[kept]


def within(pairs: Sequence[Cell], predictor: str, observed: str) -> Estimate | None:
    """Rank correlation over the new skills, for each old skill (the mean over models); with its interval over old skills."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in pairs:
        groups.setdefault((cell["old"], cell["model"]), []).append(cell)
    found = [(old, rank_correlation(*columns(group, predictor, observed))) for (old, _), group in groups.items()]
    known = [(old, value) for old, value in found if np.isfinite(value)]
    return over_units([value for _, value in known], [old for old, _ in known])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's."""
    return float(spearmanr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else float("nan")
