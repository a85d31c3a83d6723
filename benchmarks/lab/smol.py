"""S and M1 on SmolLM2-135M-Instruct (a Q4_1 GGUF, de-quantised): specialists of three tasks, merged without training.

python benchmarks/lab/smol.py --model SmolLM2-135M-Instruct.gguf --data FOLDER --units 3

FOLDER holds a folder for each real task, with train.jsonl and eval.jsonl. A finished cell is one line of smol.jsonl, and
is not run again. The suites take turns, unit after unit; a unit is a draw of rows and a seed of the shuffling.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from cpift.data.encoding import Encoded, encode, forced_rows
from cpift.data.row_checks import Row
from cpift.data.rows import load_rows
from cpift.recipe.task import Task
from cpift.train.models import convert_gguf
from lab.language import Language
from lab.merges import Setting
from lab.merging import Trial, chosen, text
from lab.outcomes import Log, packed
from lab.pieces import Merging
from lab.pretrain import kept
from lab.smol_plan import FULL, RATE, SHARES, SHORTEST, SUITES, TRIALS, USUAL, WIDE, Size


@dataclass(frozen=True)
class Rows:
    """Encoded rows of a task."""

    train: list[Encoded]
    tune: list[Encoded]
    evaluation: list[Encoded]


def rows_of(task: str, suite: str, folder: Path, unit: int, size: Size, language: Language) -> Rows:
    """A unit's draw: no question of one part is in another."""
    if suite == "generated":  # more than are used, as some questions come twice
        source = Task(generate=task, train=3 * (size.train + size.tune), eval=3 * size.evaluation)
    else:
        source = Task(train=str(folder / task / "train.jsonl"), eval=str(folder / task / "eval.jsonl"))
    found = load_rows(task, source, unit)
    rng, words = random.Random(f"{task}/{unit}"), language.tokenizer
    asked = {question(row): row for row in found[1]}
    others = {question(row): row for row in found[0] if question(row) not in asked}

    def drawn(rows: Iterable[Row], count: int) -> list[Row]:
        ordered = sorted(rows, key=lambda row: len(encode(row, words).input_ids))
        return rng.sample(ordered[: max(count, int(SHORTEST * len(ordered)))], count)

    learnt, evaluation = drawn(others.values(), size.train + size.tune), drawn(asked.values(), size.evaluation)
    forced = [forced_rows(part, None, words) for part in (learnt[size.train :], evaluation)]
    if forced[0] is None or forced[1] is None:
        raise SystemExit(f"{task}: some answers cannot be judged by one forward pass")
    return Rows([encode(row, words) for row in learnt[: size.train]], forced[0], forced[1])


def question(row: Row) -> str:
    """What a row asks."""
    return str(row["messages"][0]["content"])


class Unit:
    """A suite's specialists of one draw, and the cells that are made of them."""

    def __init__(
        self, language: Language, log: Log, suite: str, unit: int, folder: Path, data: Path, size: Size
    ) -> None:
        self.language, self.log, self.suite, self.unit, self.size = language, log, suite, unit, size
        self.tasks = SUITES[suite]
        self.files = {task: folder / f"{suite}-{unit}-{task}.pt" for task in self.tasks}
        self.rows = {task: rows_of(task, suite, data, unit, size, language) for task in self.tasks}

    def run(self, base: torch.Tensor) -> None:
        """All cells that are not done yet; the specialists lie on disk until then."""
        updates = torch.empty(len(self.tasks), len(base))
        for i, (task, file) in enumerate(self.files.items()):
            updates[i] = kept(file, lambda t=task: self.specialist(base, t))  # type: ignore[misc]
        self.cell("specialists", lambda: {
            task: self.right(theirs, task) for task, theirs in zip(self.tasks, updates, strict=True)
        })  # fmt: skip
        self.cell("base", lambda: self.all_right(base))
        merging = Merging(base, updates.sub_(base), self.language.sizes, self.unit)
        for label, (merge, setting) in USUAL.items():
            self.cell(label, lambda m=merge, s=setting: self.all_right(merging.made(m, s)), setting=text(setting))  # type: ignore[misc]
        for label in TRIALS:
            self.tune(merging, label)
        for i, task in enumerate(self.tasks):
            self.hold(merging, i, task)
        for file in self.files.values():
            file.unlink()

    def specialist(self, base: torch.Tensor, task: str) -> torch.Tensor:
        """Full fine-tuning on one task."""
        began = time.perf_counter()
        steps = self.size.steps[task]
        flat = self.language.trained(base, self.rows[task].train, steps=steps, rate=RATE, seed=self.unit)
        print(f"{self.suite}/{self.unit}/{task}: trained in {time.perf_counter() - began:.0f} s", flush=True)
        return flat

    def right(self, flat: torch.Tensor, task: str) -> str:
        """Packed outcomes of a task's evaluation rows."""
        return packed(self.language.tried(flat, self.rows[task].evaluation)[0])

    def all_right(self, flat: torch.Tensor) -> dict[str, str]:
        """Of all tasks."""
        return {task: self.right(flat, task) for task in self.tasks}

    def cell(self, label: str, make: Callable[[], dict[str, str]], **more: Any) -> None:
        """A line of S."""
        name, began = f"s-{self.suite}/{self.unit}/{label}", time.perf_counter()
        if name not in self.log:
            outcomes = make()
            where: dict[str, Any] = {"experiment": f"s-{self.suite}", "unit": self.unit, "label": label}
            self.log.add(name, {**where, "right": outcomes, **more})
            print(name, f"{time.perf_counter() - began:.0f} s", flush=True)

    def tune(self, merging: Merging, label: str) -> None:
        """All trials of a merge on the rows for that; its best is evaluated once."""
        if f"s-{self.suite}/{self.unit}/{label}" in self.log:
            return

        merge = "stitch" if label == WIDE else label

        def tried(setting: Setting) -> Trial:
            flat = merging.made(merge, setting)
            found = [self.language.tried(flat, self.rows[task].tune) for task in self.tasks]
            return Trial(setting, fmean(right.mean() for right, _ in found), fmean(loss for _, loss in found))

        settings, changes = TRIALS[label]
        trials = [tried(setting) for setting in settings]
        best = chosen(trials)
        for change in changes:
            trials.append(tried({**best, **change}))
            best = chosen(trials)
        shown = [[text(trial.setting), round(trial.score, 5), round(trial.loss, 4)] for trial in trials]
        self.cell(label, lambda: self.all_right(merging.made(merge, best)), setting=text(best), trials=shown)

    def hold(self, merging: Merging, i: int, task: str) -> None:
        """M1: outcomes of the base with part of a specialist's update, on its own task; keys as those of ``probes.held``."""
        name = f"m1-{self.suite}/{self.unit}/{task}"
        if name in self.log:
            return
        update = merging.updates[i]
        outcomes, energy = {}, float(update.norm()) ** 2
        for share in SHARES:
            core = merging.mask(i, "update", share)
            drawn = merging.mask(i, "random", share)
            for kind, mask in (("top", core), ("random", drawn), ("without", ~core)):
                outcomes[f"{kind}/{share}"] = self.right(merging.base + update * mask, task)
            outcomes[f"energy/{share}"] = f"{float(update[core].norm()) ** 2 / energy:.4f}"
        where: dict[str, Any] = {"experiment": f"m1-{self.suite}", "unit": self.unit, "skill": task}
        self.log.add(name, {**where, "outcomes": outcomes})
        print(name, flush=True)


def main(arguments: list[str] | None = None, size: Size = FULL) -> None:
    """Unit after unit, each of both suites."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file or a checkpoint's folder")
    parser.add_argument("--data", type=Path, required=True, help="a folder a task")
    parser.add_argument("--out", type=Path, default=Path("scratch/lab"), help="specialists and raw outcomes")
    parser.add_argument("--units", type=int, default=3)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = args.model
    if folder.suffix == ".gguf":
        folder = args.out / "models" / "smol"
        if not (folder / "config.json").exists():
            convert_gguf(args.model, folder)
    language, log = Language(folder), Log(args.out / "smol.jsonl")
    base = language.flat.clone()
    todo = [(suite, unit) for unit in range(args.units) for suite in args.suites]
    for suite, unit in todo:
        if not all(name in log for name in names(suite, unit)):
            Unit(language, log, suite, unit, args.out / "models", args.data, size).run(base)


def names(suite: str, unit: int) -> list[str]:
    """All cells of a unit."""
    merges = [f"s-{suite}/{unit}/{label}" for label in ("specialists", "base", *USUAL, *TRIALS)]
    return merges + [f"m1-{suite}/{unit}/{task}" for task in SUITES[suite]]


if __name__ == "__main__":
    main()
