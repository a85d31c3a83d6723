"""Runs that are cut off: run again, they end with the same bits and repeat nothing that was finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
import yaml
from tiny_run import Cut, Listener, copy, same, stamps

from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run
from cpift.runs.status import stage_states


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was never cut off."""
    return tiny_run.finished_run(tmp_path_factory)


CUTS = [
    ("stage", "00-tasks/reverse"), ("stage", "00-tasks/upper"), ("finished", "00-tasks/double"),
    ("stage", "01-probe/reverse"), ("progress", "01-probe/reverse"), ("finished", "01-probe/upper"),
    ("stage", "02-identify"), ("progress", "02-identify"), ("finished", "02-identify"),
    ("stage", "03-group"), ("finished", "03-group"),
    ("stage", "04-backbone/1"), ("progress", "04-backbone/2"), ("finished", "04-backbone/3"),
    ("stage", "05-fuse"), ("progress", "05-fuse"),
    ("stage", "06-refine/1"), ("progress", "06-refine/2"), ("finished", "06-refine/3"),
    ("stage", "07-evaluate/base"), ("progress", "07-evaluate/probe-upper"), ("finished", "07-evaluate/refine-3"),
]  # fmt: skip


def test_cut_off_everywhere_it_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    """One run, cut off again and again: before a stage, in its midst, after it. No finished stage is made twice."""
    recipe, out = Recipe.parse(tiny.recipe(whole.parent)), tmp_path / "out"
    tiny_run.cut_off_everywhere(recipe, out, CUTS)
    assert set(stamps(out)) == set(stamps(whole))
    assert all(same(out / s, whole / s) for s in ("model", "stages/05-fuse", "stages/06-refine/2"))
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(("stage", "until"), [("01-probe/reverse", "probe"), ("06-refine/3", "refine")])
def test_a_long_training_goes_on_from_its_own_checkpoint(whole: Path, tmp_path: Path, stage: str, until: str) -> None:
    """Cut off after a few steps, it does not begin at the first; frozen or not, the bits are those of an unbroken one."""
    data = tiny.recipe(whole.parent, refine={"examples_per_task": 4, "epochs": 4}, probe={"steps": 4})
    saving = {"save_strategy": "steps", "save_steps": 1}
    if until == "probe":
        data["training"] |= saving
        data["tasks"] = {"reverse": data["tasks"]["reverse"]}
        broken = tmp_path / "broken"
    else:
        data["probe"] = {"steps": 3}
        data["refine"]["training"] = saving
        broken = copy(whole, tmp_path / "broken", ("06-refine",))
    recipe = Recipe.parse(data)
    with pytest.raises(Cut):
        run(recipe, broken, until=until, reporter=Listener("progress", stage, at=3))
    assert list(broken.glob(f"stages/{stage.replace('/', '/.')}.partial/work/checkpoint-*"))
    listener = Listener()
    run(recipe, broken, until=until, reporter=listener)
    steps = [step for name, step in listener.steps if name == stage]
    assert steps[0] >= 3
    assert steps[-1] == 4
    unbroken = tmp_path / "unbroken" if until == "probe" else copy(whole, tmp_path / "unbroken", ("06-refine",))
    run(recipe, unbroken, until=until)
    assert same(broken / "stages" / stage, unbroken / "stages" / stage)
    assert not (broken / "stages" / stage / "work").exists()


def test_killed_in_the_middle_it_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    """SIGKILL of the process, in a training."""
    out = copy(whole, tmp_path / "out", ("04-backbone/[23]", "05*", "06*", "07*"))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(whole.parent), sort_keys=False))
    command = [sys.executable, "-m", "cpift.cli", "run", str(tmp_path / "r.yaml"), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while process.poll() is None and not (out / "stages/04-backbone/.2.partial").exists():
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "stages/04-backbone/2").exists()
    recipe, before = Recipe.parse(tiny.recipe(whole.parent)), stamps(out)
    states = {s.name: s for s in stage_states(recipe, out)}
    assert (states["04-backbone/2"].state, states["04-backbone/2"].why) == ("missing", "was interrupted")
    run(recipe, out)
    assert {s: stamps(out)[s] for s in before} == before
    assert same(out / "model", whole / "model")


def test_a_full_disk_in_the_middle_of_a_stage(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said which stage; with room again, the run goes on to the same end."""
    out, recipe = copy(whole, tmp_path / "out", ("05*", "06*", "07*")), Recipe.parse(tiny.recipe(whole.parent))

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cpift.runs.stages.fuse.fuse", no_room)
        with pytest.raises(CpiftError, match=r"05-fuse: the disk is full; .*finished stages stand"):
            run(recipe, out)
    listener = Listener()
    run(recipe, out, until="fuse", reporter=listener)
    assert listener.made == ["05-fuse"]
    assert same(out / "stages/05-fuse", whole / "stages/05-fuse")


def test_cut_off_between_the_old_model_and_the_new(whole: Path, tmp_path: Path) -> None:
    """The old one was moved away, the new one not yet there: run again, it is, and nothing else is left."""
    out, recipe = copy(whole, tmp_path / "out"), Recipe.parse(tiny.recipe(whole.parent))
    (out / "model").replace(out / ".model.old")
    (out / ".model.partial").mkdir()
    (out / ".model.partial/config.json").write_text("{")
    listener = Listener()
    run(recipe, out, reporter=listener)
    assert listener.made == []
    assert same(out / "model", whole / "model")
    assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == [".lock", ".model.json", ".scored"]


class Second(Listener):
    """Starts a second run in the same folder while the first is at work, and looks at the first."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        super().__init__()
        self._recipe, self._out = recipe, out
        self.refused: list[str] = []
        self.running: set[str] = set()

    def stage(self, name: str, what: str) -> None:
        super().stage(name, what)
        with pytest.raises(CpiftError) as caught:
            run(self._recipe, self._out)
        self.refused.append(str(caught.value))

    def progress(self, done: float, total: float, detail: str = "") -> None:
        self.running |= {s.name for s in stage_states(self._recipe, self._out) if s.state == "running"}


def test_two_runs_in_one_folder(whole: Path, tmp_path: Path) -> None:
    """The second is refused, the first is seen to be running and goes on unharmed."""
    recipe, out = Recipe.parse(tiny.recipe(whole.parent)), copy(whole, tmp_path / "out", ("01-probe/upper",))
    second = Second(recipe, out)
    run(recipe, out, until="probe", reporter=second)
    assert second.refused
    assert all("another cpift is at work in this folder" in text for text in second.refused)
    assert second.running == {"01-probe/upper"}
    assert same(out / "stages/01-probe/upper", whole / "stages/01-probe/upper")
