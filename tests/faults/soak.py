"""``make soak``: every fault of the table at the full count. Says what held and how often; exit code 1 where something did not.

A fault is one function in ``FAULTS`` that yields its trials; a trial returns how often it held, or raises.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"

import damage as rotten
import full_disk
import killing
import preloaded
import ranks
import tiny
import tiny_add
import tiny_run
import workers
import yaml

LOG = Path(__file__).parents[2] / "docs" / "soak.log"
KILLS, KILLS_A_RUN, SIGNALS = 50, 10, 3

Trial = Callable[[], int]


@dataclass
class Ground:
    """A finished run that nothing happened to, its recipe, the seconds it took, and room for others."""

    place: Path
    rng: random.Random
    recipe: Path
    whole: Path
    seconds: float

    def folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place))


def killed(ground: Ground) -> Iterator[Trial]:
    """SIGKILL at random moments of whole runs"""
    for _ in range(KILLS // KILLS_A_RUN):

        def trial() -> int:
            longest, seed = 2.0 * ground.seconds / KILLS_A_RUN, ground.rng.randrange(2**32)
            killing.torment(ground.recipe, ground.whole, ground.folder(), KILLS_A_RUN, seed, longest, quiet)
            return KILLS_A_RUN

        yield trial


def killed_addition(ground: Ground) -> Iterator[Trial]:
    """SIGKILL at random moments of additions to a model, inside their cores and averaged"""
    for train in ("all", "inside"):

        def trial(train: str = train) -> int:
            folder = ground.folder()
            recipe, whole = killing.addition(folder, train)
            models = ["model", "stages/04-arrive/1/train", "stages/04-arrive/1/fuse"]
            killing.torment(
                recipe, whole, folder, KILLS_A_RUN, ground.rng.randrange(2**32), ground.seconds / KILLS_A_RUN, quiet,
                models, tiny_add.same_bits,
            )  # fmt: skip
            return KILLS_A_RUN

        yield trial


def signalled(ground: Ground) -> Iterator[Trial]:
    """SIGINT and SIGTERM at random moments"""
    for name in ("SIGINT", "SIGTERM") * SIGNALS:

        def trial(name: str = name) -> int:
            for _ in range(5):  # until it is not too late
                wait = ground.rng.uniform(0.0, 0.7 * ground.seconds)
                if killing.told_to_stop(ground.recipe, ground.whole, ground.folder(), name, wait=wait):
                    return 1
            return 0

        yield trial


def disk_full(ground: Ground) -> Iterator[Trial]:
    """a full disk in each stage"""
    for name in full_disk.STAGES:

        def trial(name: str = name) -> int:
            folder = ground.folder()
            with full_disk.small_disk(folder / "disk") as disk:
                assert disk is not None, "no tmpfs can be mounted here; run as root"
                full_disk.run_full(ground.recipe, ground.whole, disk, folder / "said", name)
            return 1

        yield trial


def damaged(ground: Ground) -> Iterator[Trial]:
    """flipped bits, files cut short or gone, in all files of a stage of each kind"""
    seen = set()
    for known in rotten.FILES:
        stage = Path(known).parent
        files = sorted(p for p in (ground.whole / "stages" / stage).iterdir() if p.is_file() and p.name != "stage.json")
        for file in files:
            if (stage, file.name) in seen:
                continue
            seen.add((stage, file.name))
            for kind in rotten.DAMAGES:

                def trial(name: str = str(stage / file.name), kind: str = kind) -> int:
                    at, bit = ground.rng.random(), ground.rng.randrange(8)
                    found = rotten.rot(ground.whole, ground.folder() / "out", name, kind, at, bit)
                    if name in rotten.FILES and kind == "a flipped bit":
                        rotten.redo(ground.whole, found)
                    return 1

                yield trial


def two_runs(ground: Ground) -> Iterator[Trial]:
    """two runs in one folder at once"""
    for _ in range(3):
        yield lambda: killing.second_run(
            ground.recipe, ground.whole, ground.folder(), ground.rng.uniform(0.0, 0.3 * ground.seconds)
        )


def killed_rank(ground: Ground) -> Iterator[Trial]:
    """a killed process of two under torchrun"""

    def trial() -> int:
        folder = ground.folder()
        recipe = folder / "r.yaml"
        recipe.write_text(yaml.safe_dump(tiny.recipe(folder, ("reverse", "upper")), sort_keys=False))
        whole = ranks.unbroken(recipe, folder / "whole")
        kills = [(number % 2, moment) for number, moment in enumerate(ranks.MOMENTS)]
        return ranks.kill_ranks(recipe, whole, folder / "out", kills, ground.rng.randrange(2**32))

    yield trial


def killed_worker(ground: Ground) -> Iterator[Trial]:
    """a killed worker of a Ray cluster of two nodes"""
    for stage in workers.STAGES:
        yield lambda s=stage: one(workers.kill_worker(ground.recipe, ground.whole, ground.folder() / "out", s))  # type: ignore[misc]


def diverging(ground: Ground) -> Iterator[Trial]:
    """a loss that is no number, or diverges"""
    for stage in rotten.TRAININGS:
        for kind in rotten.DIVERGING:
            yield lambda s=stage, k=kind: one(rotten.diverge(ground.whole, ground.folder() / "out", s, k))  # type: ignore[misc]


def bad_rows(ground: Ground) -> Iterator[Trial]:
    """a bad row at row 10,000"""
    for name in rotten.BAD_ROWS:
        for part in ("train", "eval"):
            yield lambda n=name, p=part: one(rotten.bad_row(ground.whole, ground.folder(), n, p))  # type: ignore[misc]


def edits(ground: Ground) -> Iterator[Trial]:
    """the recipe, or a data file, edited between runs"""
    for name in rotten.EDITS:
        yield lambda n=name: one(rotten.edited(ground.whole, ground.folder(), n))  # type: ignore[misc]


FAULTS: list[Callable[[Ground], Iterator[Trial]]] = [
    killed, killed_addition, signalled, disk_full, damaged, two_runs, killed_rank, killed_worker, diverging, bad_rows, edits,
]  # fmt: skip


def one(_: None) -> int:
    """A check that returns nothing has held once."""
    return 1


def quiet(_: str) -> None:
    pass


def prepare(place: Path, seed: int) -> Ground:
    """Make the run that the others are measured by, as a process like theirs, and time it."""
    recipe, whole = place / "faults.yaml", place / "whole"
    recipe.write_text(yaml.safe_dump(tiny.recipe(place), sort_keys=False))
    for out in (place / "first", whole):  # in the first, the libraries are imported and compile
        began = time.monotonic()
        process = preloaded.start(["run", str(recipe), "--out", str(out)], place / "said")
        process.join()
        assert process.exitcode == 0, (place / "said").read_text()[-3000:]
    return Ground(place, random.Random(seed), recipe, whole, time.monotonic() - began)


def soak(ground: Ground, faults: list[Callable[[Ground], Iterator[Trial]]], say: Callable[[str], None]) -> bool:
    """Try each fault; say in a line what held and how often, and what did not. Returns whether all held."""
    sound = True
    for fault in faults:
        held, failed, began = 0, [], time.monotonic()
        for trial in fault(ground):
            try:
                held += int(trial())
            except BaseException as error:  # pytest's own failures are no Exceptions
                if isinstance(error, KeyboardInterrupt):
                    raise
                failed.append(" ".join(f"{type(error).__name__}: {error}".split())[:300] or type(error).__name__)
                traceback.print_exc()
        sound &= bool(held) and not failed
        word = "held" if held and not failed else "DID NOT HOLD"
        of = f"{held} times" + (f", {len(failed)} trials failed" if failed else "")
        say(f"{word}: {fault.__doc__}: {of}, {time.monotonic() - began:.0f} s")
        for text in failed:
            say(f"    {text.replace(str(ground.place), '…')}")
    return sound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", help=f"only these, and no log: {', '.join(f.__name__ for f in FAULTS)}")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the moments and places")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or a small disk would stay mounted
    preloaded._IMPORTS.append("soak")  # each process reads the main file again: by then it has imported all
    chosen = [f for f in FAULTS if f.__name__ in given.faults or not given.faults]
    from cpift.runs.usage import versions

    lines: list[str] = []

    def say(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    say(f"make soak, {date}, seed {given.seed}: whole runs of a tiny model, three tasks")
    say(", ".join(f"{name} {version}" for name, version in versions().items()))
    with tempfile.TemporaryDirectory(prefix="soak-") as place, tiny_run.one_thread():
        ground, began = prepare(Path(place), given.seed), time.monotonic()
        say(f"a run that nothing happens to: {ground.seconds:.1f} s")
        sound = soak(ground, chosen, say)
        say(f"{'all held' if sound else 'NOT ALL HELD'}, {(time.monotonic() - began) / 60:.0f} minutes")
    if not given.faults:
        LOG.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
