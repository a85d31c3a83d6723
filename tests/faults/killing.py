"""Whole runs, killed, told to stop, or started twice, at any moment: what must hold. Used by the tests and by the soak."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import preloaded
import tiny_add
import tiny_run
import yaml
from tiny_run import same, stamps

MODELS = ("model", "stages/01-probe/upper", "stages/04-backbone/3", "stages/05-fuse", "stages/06-refine/3")


def torment(
    recipe: Path,
    whole: Path,
    place: Path,
    kills: int,
    seed: int,
    longest: float = 2.0,
    say: Callable[[str], None] = print,
    models: Sequence[str] = MODELS,
    same: Callable[[Path, Path], bool] = same,
) -> int:
    """Kill runs of ``recipe`` so often, each started again until it is done; compare them with ``whole``.

    ``longest``: seconds that a process lives before it is killed. ``models``: the folders to compare, by ``same``. Returns the number of runs that were finished. An
    ``AssertionError`` tells what did not hold.
    """
    rng, killed, finished = random.Random(seed), 0, 0
    while killed < kills or finished == 0:
        out, of_this = place / f"run{finished}", 0
        while True:
            before = {s: t for s, t in stamps(out).items() if ".partial" not in s}  # not in its place yet: not finished
            process = preloaded.start(["run", str(recipe), "--out", str(out)], place / "said")
            wait = rng.uniform(0.0, longest) if killed < kills else None
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
        assert all(same(out / model, whole / model) for model in models), "other weights"
        assert not list(out.rglob("*.partial")), "a leftover"
        assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == sorted(
            p.name for p in whole.iterdir() if p.name.startswith(".")
        )
        finished += 1
        say(f"{time.strftime('%H:%M:%S')} run {finished} is done after {of_this} kills: the same weights, bit for bit")
    return finished


def addition(place: Path, train: str) -> tuple[Path, Path]:
    """A recipe that adds a task to a tiny model, and its run that nothing happened to; ``train`` as in the recipe."""
    tiny_add.models(place)
    recipe, whole = place / "add.yaml", place / "whole"
    data = tiny_add.arrivals(place, ["upper"], ["reverse"], arrivals={"train": train}, protect={"by": "fisher"})
    recipe.write_text(yaml.safe_dump(data, sort_keys=False))
    process = preloaded.start(["run", str(recipe), "--out", str(whole)], place / "said")
    process.join()
    assert process.exitcode == 0, (place / "said").read_text()[-2000:]
    return recipe, whole


def begun(recipe: Path, out: Path, said: Path) -> BaseProcess:
    """A process that has taken the run folder for its own."""
    process = preloaded.start(["run", str(recipe), "--out", str(out)], said)
    wait_for(out / ".lock", process)
    return process


def processor_seconds(process: int) -> float:
    """That a process has used; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(file: Path, process: BaseProcess) -> None:
    """Until the file is there, or the process is not."""
    while process.is_alive() and not file.exists():
        time.sleep(0.002)


def goes_on(recipe: Path, whole: Path, out: Path) -> None:
    """Started again, the run in ``out`` ends with the weights of ``whole``."""
    said = out.with_name(f"{out.name}.again")
    again = preloaded.start(["run", str(recipe), "--out", str(out)], said)
    again.join(300)
    assert again.exitcode == 0, said.read_text()[-2000:]
    assert same(out / "model", whole / "model"), "other weights"
    assert not list(out.rglob("*.partial")), "a leftover"


def told_to_stop(recipe: Path, whole: Path, place: Path, name: str, stage: str = "", wait: float = 0.0) -> bool:
    """Send a signal so long after a stage (or the run) has begun: it stops within seconds, says how to go on, and goes on.

    Returns whether the run was still going on then.
    """
    out, said = place / "out", place / "said"
    process = begun(recipe, out, said)
    if stage:
        wait_for(out / "stages" / stage, process)
    process.join(wait)
    if not process.is_alive():
        return False
    assert process.pid is not None
    os.kill(process.pid, getattr(signal, name))
    before, began, spent = stamps(out), time.monotonic(), processor_seconds(process.pid)
    used = spent
    while process.is_alive() and time.monotonic() - began < 60:
        used = max(used, processor_seconds(process.pid))
        time.sleep(0.005)
    took, text = time.monotonic() - began, said.read_text()
    if process.exitcode == 0:  # it was done just then
        return False
    # Where others keep the processors busy, a second of work can take ten.
    assert took < 60, f"{took:.1f} s, and it has not stopped"
    assert took < 10 or used - spent < 3, f"{took:.1f} s until it stopped, {used - spent:.1f} s of them at work"
    assert process.exitcode == 130, text[-2000:]
    assert text.splitlines()[-1] == "stopped; run the same command again to resume", text[-2000:]
    assert "Traceback" not in text, text[-2000:]
    assert tiny_run.whole_stages_only(out)
    assert {stage: stamps(out).get(stage) for stage in before} == before
    goes_on(recipe, whole, out)
    return True


def second_run(recipe: Path, whole: Path, place: Path, wait: float) -> bool:
    """A second run in the same folder, so long after the first began: refused in one line, and the first is unharmed.

    Returns whether the first was still going on then.
    """
    out, said = place / "out", place / "said.2"
    first = begun(recipe, out, place / "said.1")
    first.join(wait)
    second = preloaded.start(["run", str(recipe), "--out", str(out)], said)
    second.join(120)
    both = first.is_alive()
    first.join(300)
    assert first.exitcode == 0, (place / "said.1").read_text()[-2000:]
    assert same(out / "model", whole / "model"), "other weights"
    if both:
        text = said.read_text()
        assert second.exitcode == 2, text[-2000:]
        assert "another cpift is at work in this folder" in text.splitlines()[-1]
        assert "Traceback" not in text
    return both
