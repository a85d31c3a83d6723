"""Forms tuned and run on the tasks of a unit: what E3 and E4 share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from lab.arrivals import Skill
from lab.forms import FORMS, Groups, Trial, overlaps
from lab.network import Network
from lab.outcomes import Log, packed
from lab.training import right

SPECIALISTS = "specialists"


def scores(network: Network, flat: torch.Tensor, skills: Mapping[str, Skill]) -> dict[str, str]:
    """Packed outcomes of each task's evaluation rows."""
    return {name: packed(right(network, flat, skill.evaluation)) for name, skill in skills.items()}


def checked(network: Network, flat: torch.Tensor, skills: Mapping[str, Skill]) -> float:
    """Mean score on the rows that serve for tuning."""
    return float(np.mean([right(network, flat, skill.check).mean() for skill in skills.values()]))


def tuned(
    log: Log, name: str, trial: Trial, skills: Mapping[str, Skill], labels: Sequence[str], groups: Groups,
    rates: Sequence[float],
) -> dict[str, float]:  # fmt: skip
    """The best rate of the specialists and of each form, by rows that are in no table; equal ones: the lower rate."""
    best: dict[str, float] = {}
    for label in (SPECIALISTS, *labels):
        found: list[tuple[float, float]] = []
        for rate in rates:
            cell = f"{name}/{label}/{rate:g}"
            if cell not in log:
                if label == SPECIALISTS:
                    alone, _ = replace(trial, probe_rate=rate, known={}).probes(1.0)
                    parts = zip(alone, skills.items(), strict=True)
                    score = float(np.mean([checked(trial.network, trial.base + u, dict([s])) for u, s in parts]))
                else:
                    trial.probe_rate = best[SPECIALISTS]
                    score = checked(trial.network, trial.run(FORMS[label], rate, groups)[0], skills)
                log.add(cell, {"experiment": name, "unit": 0, "label": label, "rate": rate, "score": score})
                print(cell, f"{score:.3f}", flush=True)
            found.append((float(str(log.done[cell]["score"])), -rate))
        best[label] = -max(found)[1]
    return best


def spent(
    log: Log, name: str, unit: int, trial: Trial, skills: Mapping[str, Skill], rates: Mapping[str, float],
    groups: Mapping[str, Groups],
) -> None:  # fmt: skip
    """The specialists of a unit and each form that has groups, at its rate: one line of raw outcomes each."""
    trial.probe_rate = rates[SPECIALISTS]
    for label in (SPECIALISTS, *groups):
        cell, began = f"{name}/{unit}/{label}", time.perf_counter()
        if cell in log:
            continue
        if label == SPECIALISTS:
            updates, tokens = trial.probes(1.0)
            alone = zip(updates, skills.items(), strict=True)
            outcomes = {s[0]: scores(trial.network, trial.base + u, dict([s]))[s[0]] for u, s in alone}
            jaccard = overlaps(trial.cores(updates))
            more = {
                "overlaps": [
                    round(float(x), 4)
                    for x in jaccard[tuple(torch.triu_indices(jaccard.shape[0], jaccard.shape[1], 1))]
                ]
            }
        else:
            flat, tokens = trial.run(FORMS[label], rates[label], groups[label])
            outcomes, more = scores(trial.network, flat, skills), {}
        log.add(cell, {
            "experiment": name, "unit": unit, "model": unit, "label": label, "rate": rates[label], "steps": trial.steps,
            "groups": len(groups.get(label, skills)), "tokens": tokens, "right": outcomes, **more,
        })  # fmt: skip
        print(cell, f"{time.perf_counter() - began:.1f} s", flush=True)
