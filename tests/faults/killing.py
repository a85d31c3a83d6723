"""Whole runs, killed again and again at random moments: what must hold after each. Used by the tests and by the soak."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import preloaded
import tiny_run
from tiny_run import same, stamps

MODELS = ("model", "stages/01-probe/upper", "stages/04-backbone/3", "stages/05-fuse", "stages/06-refine/3")


def torment(recipe: Path, whole: Path, place: Path, kills: int, seed: int, say: Callable[[str], None] = print) -> int:
    """Kill runs of ``recipe`` so often, each started again until it is done; compare them with ``whole``.

    Returns the number of runs that were finished. An ``AssertionError`` tells what did not hold.
    """
    rng, killed, finished = random.Random(seed), 0, 0
    while killed < kills or finished == 0:
        out, of_this = place / f"run{finished}", 0
        while True:
            before = {s: t for s, t in stamps(out).items() if ".partial" not in s}  # not in its place yet: not finished
            process = preloaded.start(["run", str(recipe), "--out", str(out)], place / "said")
            wait = rng.uniform(0.0, 2.0) if killed < kills else None
            process.join(wait)
            if process.is_alive():
                process.kill()
                process.join()
                if process.exitcode == -signal.SIGKILL:  # or it was done just then
                    killed, of_this = killed + 1, of_this + 1
            after = stamps(out)
            assert {s: after.get(s) for s in before} == before, (
                "a finished stage was made again",
                before.items() - after.items(),
            )
            assert tiny_run.whole_stages_only(out)
            assert not (out / "model").exists() or same(out / "model", whole / "model")
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, (place / "said").read_text()[-2000:]
            say(f"{time.strftime('%H:%M:%S')} kill {killed}: after {wait:.2f} s, {len(after)} stages done")
        assert set(stamps(out)) == set(stamps(whole))
        assert all(same(out / model, whole / model) for model in MODELS), "other weights"
        assert not list(out.rglob("*.partial")), "a leftover"
        assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == [".lock"]
        finished += 1
        say(f"{time.strftime('%H:%M:%S')} run {finished} is done after {of_this} kills: the same weights, bit for bit")
    return finished
