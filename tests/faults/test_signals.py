"""Killed, interrupted, told to end, started twice: a run ends as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from killing import addition, second_run, told_to_stop, torment
from tiny_add import same_bits

from cpift.console import stopping
from cpift.console.terminal import Terminal


@pytest.mark.long  # a kill at a chosen moment is in test_resume.py
def test_killed_at_random_moments(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """Five times; ``make soak`` does it fifty times."""
    assert torment(recipe, whole, tmp_path, kills=5, seed=1) >= 1


@pytest.mark.long  # cut off in each stage: test_add_resume.py
@pytest.mark.parametrize("train", ["all", "inside"])
def test_an_addition_killed_at_random_moments(tmp_path: Path, train: str) -> None:
    """Five times; ``make soak`` does it ten times."""
    recipe, whole = addition(tmp_path, train)
    models = ("model", "stages/04-arrive/1/train", "stages/04-arrive/1/fuse")
    assert torment(recipe, whole, tmp_path, kills=5, seed=2, longest=1.0, models=models, same=same_bits) >= 1


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("SIGINT", "06-refine/.2.partial"),
        *(
            pytest.param(name, stage, marks=pytest.mark.long)
            for name, stage in (
                ("SIGINT", "01-probe/.reverse.partial"),
                ("SIGTERM", "01-probe/.reverse.partial"),
                ("SIGTERM", "06-refine/.2.partial"),
            )
        ),
    ],
)
def test_told_to_stop(recipe: Path, whole: Path, tmp_path: Path, name: str, stage: str) -> None:
    """Within seconds, with how to go on; and it goes on to the same end."""
    assert told_to_stop(recipe, whole, tmp_path, name, stage)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_library_swallows(number: int) -> None:
    """It is met again at the next step of a training, or at the next stage."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        stopping.listen()
        shown = Terminal()
        shown.progress(0, 1)
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
        for step in (lambda: shown.progress(1, 2), lambda: shown.stage("06-refine/1", "")):
            with pytest.raises(KeyboardInterrupt):
                step()
        stopping.listen()
        shown.progress(1, 2)
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_two_runs_in_one_folder(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """The second is refused; the first ends as if it had been alone."""
    assert second_run(recipe, whole, tmp_path, wait=0.2)
