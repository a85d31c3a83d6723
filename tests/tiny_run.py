"""The command in this process, and whole runs of the tiny recipe: watched, cut off, compared. No fixtures."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file

from cpift.cli import main as cli
from cpift.console.reporter import Reporter
from cpift.recipe.recipe import Recipe
from cpift.runs.pipeline import run


class Cut(KeyboardInterrupt):
    """A run that is cut off."""


class Listener(Reporter):
    """Remembers what was made, and cuts the run off where told to: an event and the start of a stage's name."""

    def __init__(self, event: str = "", stage: str = "", at: float = 0.0) -> None:
        self.made: list[str] = []
        self.kept: list[str] = []
        self.said: list[str] = []
        self.steps: list[tuple[str, float]] = []
        self._cut = event, stage, at
        self._now = ""

    def _maybe_cut(self, event: str, at: float = 0.0) -> None:
        if event == self._cut[0] and self._now.startswith(self._cut[1]) and at >= self._cut[2]:
            raise Cut

    def stage(self, name: str, what: str) -> None:
        self._now = name
        self._maybe_cut("stage")
        self.made.append(name)

    def progress(self, done: float, total: float, detail: str = "") -> None:
        self.steps.append((self._now, done))
        self._maybe_cut("progress", done)

    def finished(self, name: str, facts: Mapping[str, Any]) -> None:
        self._maybe_cut("finished")

    def skipped(self, name: str) -> None:
        self.kept.append(name)

    def message(self, text: str) -> None:
        self.said.append(text)

    def warning(self, text: str) -> None:
        self.said.append(text)


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and lose much where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_finished: list[Path] = []


def finished_run(factory: pytest.TempPathFactory) -> Path:
    """The one finished run that the tests share, ``…/whole``, beside its base and data; copy it to change it."""
    if not _finished:
        place = factory.mktemp("runs")
        with one_thread():
            run(Recipe.parse(tiny.recipe(place)), place / "whole")
        _finished.append(place / "whole")
    return _finished[0]


def copy(whole: Path, to: Path, without: tuple[str, ...] = ()) -> Path:
    """A copy of a run, without some of its stages and what is made at the very end."""
    shutil.copytree(whole, to, copy_function=shutil.copy2)
    for pattern in without:
        for folder in (to / "stages").glob(pattern):
            shutil.rmtree(folder)
    if without:
        shutil.rmtree(to / "model")
        (to / "scores.json").unlink()
    return to


def stamps(out: Path) -> dict[str, int]:
    """When each stage was finished."""
    return {str(f.parent.relative_to(out / "stages")): f.stat().st_mtime_ns for f in out.glob("stages/**/stage.json")}


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Tensors of a checkpoint as their bits."""
    return {n: w.ravel().view(np.int32) for n, w in load_file(folder / "model.safetensors").items()}


def same(a: Path, b: Path) -> bool:
    """Have two checkpoints the same bits?"""
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(np.array_equal(left[n], right[n]) for n in left)


def whole_stages_only(out: Path) -> bool:
    """Is every folder that has a stage's name a finished stage?"""
    files = [p for p in (out / "stages").rglob("*") if p.is_file() and ".partial" not in str(p)]
    return all(any((parent / "stage.json").is_file() for parent in file.parents) for file in files)


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Run a command in this process; exit code, output, errors. An exception that is none of these is a traceback."""
    before, handlers = sys.argv, {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    sys.argv = ["cpift", *map(str, arguments)]
    capsys.readouterr()
    try:
        cli.main()
        code: Any = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = capsys.readouterr()
    return int(code), said.out, said.err


def cut_off_everywhere(recipe: Recipe, out: Path, cuts: Sequence[tuple[str, str]]) -> None:
    """Run, cut off at each event of a stage in turn, then to the end. No finished stage is made twice, none is half there."""
    for event, stage in cuts:
        before = stamps(out)
        with pytest.raises(Cut):
            run(recipe, out, reporter=Listener(event, stage))
        after = stamps(out)
        assert {s: after.get(s) for s in before} == before, (event, stage)
        if event != "finished":
            assert not any(s.startswith(stage) for s in after), (event, stage)
        assert whole_stages_only(out)
        assert not (out / "model").exists()
    before = stamps(out)
    run(recipe, out)
    assert {s: stamps(out)[s] for s in before} == before
