"""A run of two processes under torchrun, of which one is killed, again and again. Used by the tests and by the soak."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import preloaded
import tiny_run
from launching import finish, process_of_rank, start
from tiny_run import same, stamps

MODELS = ("model", "stages/04-backbone/2", "stages/05-fuse", "stages/06-refine/2")
# Where a process is killed: while this stage is being made.
MOMENTS = ("01-probe/.upper.partial", "04-backbone/.2.partial", "06-refine/.1.partial", "07-evaluate/fused")


def unbroken(recipe: Path, out: Path) -> Path:
    """The run of two that nothing happened to."""
    codes, said = preloaded.run_ranks(2, ["run", str(recipe), "--out", str(out)], out.with_name("said"))
    assert codes == [0, 0], said
    return out


def kill_ranks(recipe: Path, whole: Path, out: Path, kills: list[tuple[int, str]], seed: int = 0) -> int:
    """Kill one process of two, each time another rank in another stage; started again, the run ends as ``whole`` did.

    Returns how many were killed while the run was going on.
    """
    rng, killed = random.Random(seed), 0
    for rank, moment in kills:
        process, victim, before = start(2, "run", recipe, "--out", out), None, finished(out)
        while process.poll() is None and (victim is None or not (out / "stages" / moment).exists()):
            victim = victim or process_of_rank(process.pid, rank)
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.2))
        if process.poll() is None and victim is not None:
            os.kill(victim, signal.SIGKILL)
            killed += 1
        code, _, errors = finish(process)
        assert code != 0 or (out / "model").exists(), errors[-3000:]
        after = stamps(out)
        assert {s: after.get(s) for s in before} == before, "a finished stage was made again"
        assert tiny_run.whole_stages_only(out)
        assert code == 0 or not (out / "model").exists()
    before = finished(out)
    codes, said = preloaded.run_ranks(2, ["run", str(recipe), "--out", str(out)], out.with_name("said"))
    assert codes == [0, 0], said
    assert {s: stamps(out)[s] for s in before} == before
    assert set(stamps(out)) == set(stamps(whole))
    assert all(same(out / model, whole / model) for model in MODELS), "other weights"
    assert not list(out.rglob("*.partial")), "a leftover"
    return killed


def finished(out: Path) -> dict[str, int]:
    """When each stage that is in its place was finished."""
    return {stage: stamp for stage, stamp in stamps(out).items() if ".partial" not in stage}
