"""Run the experiments of the laboratory: each finished cell is one line of raw outcomes, and is not run again.

python benchmarks/lab/run.py e2 --units 12       kept rows 0, 64 and 16, tuning first
python benchmarks/lab/run.py e1 m1 m2 --device cuda
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab import batches, conflict, merging, paper_form, plan
from lab.arrivals import Run, Size
from lab.network import Network
from lab.outcomes import Log
from lab.pretrain import STEPS, pretrained
from lab.probes import Pairs, Probes, held, pairs_of
from lab.rows import EXPLORE, REPORT, vocabulary_size
from lab.tuning import best_rates

OTHERS = {"s": merging.s, "e3": conflict.e3, "e4": paper_form.e4, "b1": batches.b1}  # in files of their own
EXPERIMENTS = ("e2", "e1", "m1", "m2", "pareto", *OTHERS)


class Laboratory:
    """The pre-trained models, the raw outcomes, and what runs a cell."""

    def __init__(self, folder: Path, device: str = "cpu", *, tiny: bool = False) -> None:
        self.folder, self.device, self.tiny = folder, device, tiny
        characters = vocabulary_size()
        small = Network(characters, layers=1, width=32, heads=2, inner=64) if tiny else None
        self.network = small or Network(characters)
        self.size = Size(64, 16, 16) if tiny else Size()
        self.pretraining = 3 if tiny else STEPS
        self.firsts: dict[tuple[object, ...], torch.Tensor] = {}

    def base(self, seed: int) -> torch.Tensor:
        """A pre-trained model."""
        return pretrained(self.network, self.folder / "models", seed, self.pretraining).to(self.device)

    def log(self, experiment: str) -> Log:
        """Raw outcomes of an experiment."""
        return Log(self.folder / f"{experiment}.jsonl")

    def arrivals(self, log: Log, jobs: Iterable[plan.Job]) -> None:
        """Run what is not done yet."""
        for job in jobs:
            cell = job.cell
            if self.tiny:
                cell = replace(cell, steps=min(3, cell.steps), first_steps=3, kept=min(4, cell.kept))
            if job.name in log:
                done = log.done[job.name]
                if (done["rate"], done["steps"], done["kept"]) != (cell.rate, cell.steps, cell.kept):
                    raise SystemExit(f"{log.file}: {job.name} was run with other settings; remove the file")
                continue
            began, base = time.perf_counter(), self.base(job.model)
            shared = (job.model, cell.order[0], cell.first_steps, cell.seed)
            stages, first = Run(self.network, base, cell, self.size).run(self.firsts.get(shared))
            if shared not in self.firsts:
                self.firsts = {shared: first}
            log.add(job.name, {
                "experiment": job.experiment, "unit": job.unit, "model": job.model, "label": job.label,
                "method": cell.method, "order": list(cell.order), "kept": cell.kept, "rate": cell.rate, "steps": cell.steps,
                "seconds": round(time.perf_counter() - began, 2), "stages": stages,
            })  # fmt: skip
            print(job.name, f"{time.perf_counter() - began:.1f} s", flush=True)

    def e2(self, units: int) -> None:
        """Retention with 0, 64 and 16 kept rows, one after the other."""
        log = self.log("e2")
        for kept in plan.KEPT:
            self.arrivals(log, plan.tuning(f"e2-{kept}", plan.e2_methods(kept), kept, plan.STEPS))
            self.arrivals(log, plan.e2(kept, units, best_rates(log, f"e2-{kept}-tuning")))

    def pareto(self, units: int) -> None:
        """What is learnt against what is retained, over the rates."""
        for kept in plan.KEPT[:2]:
            self.arrivals(self.log("e2"), plan.pareto(kept, units))

    def e1(self, units: int) -> None:
        """Averaging, freezing, transplanting, the rate, in short and in longer arrivals."""
        log = self.log("e1")
        for steps in plan.E1_STEPS:
            self.arrivals(log, plan.tuning(f"e1-{steps}", plan.E1_TUNED, plan.E1_ROWS, steps))
            self.arrivals(log, plan.e1(steps, units, best_rates(log, f"e1-{steps}-tuning")))

    def probes(self, unit: int) -> Probes:
        """Specialists of a unit's pre-trained model."""
        steps = {"steps": 3} if self.tiny else {}
        return Probes(self.network, self.base(unit), 100 * unit, self.size, **steps)

    def m1(self, units: int) -> None:
        """How much of a skill the top p % hold."""
        log = self.log("m1")
        for unit in range(1, units + 1):
            for skill in REPORT:
                name = f"m1/{unit}/{skill}"
                if name not in log:
                    outcomes = held(self.probes(unit), skill)
                    log.add(name, {"unit": unit, "model": unit, "skill": skill, "outcomes": outcomes})
                    print(name, flush=True)

    def m2(self, units: int) -> None:
        """All ordered pairs of the ten skills."""
        log, skills = self.log("m2"), REPORT[:3] if self.tiny else (*REPORT, *EXPLORE)
        for unit in range(1, units + 1):
            pairs = Pairs(self.probes(unit), **({"steps": 3} if self.tiny else {}))
            for old, new in pairs_of(skills):
                name = f"m2/{unit}/{old}>{new}"
                if name not in log:
                    found = {"predictors": pairs.predictors(old, new), "observed": pairs.observed(old, new)}
                    log.add(name, {"unit": unit, "model": unit, "old": old, "new": new, **found})
                    print(name, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for, one experiment after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--out", type=Path, default=Path("scratch/lab"), help="pre-trained models and raw outcomes")
    parser.add_argument("--units", type=int, default=6, help="pre-trained models, each with its own order and seed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a few steps of a very small model, to try the code")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    laboratory = Laboratory(args.out, args.device, tiny=args.tiny)
    for name in args.experiments:
        OTHERS[name](laboratory, args.units) if name in OTHERS else getattr(laboratory, name)(args.units)


if __name__ == "__main__":
    main()
