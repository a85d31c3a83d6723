"""What a run shows: a moving bar on a terminal; plain lines in a pipe and under NO_COLOR; the table at its end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from cpift.console import terminal
from cpift.console.scores import scores_table
from cpift.metrics.summary import summary

SHOW = """
from cpift.console import terminal
from cpift.console.scores import scores_table
from cpift.metrics.summary import summary
shown = terminal.Terminal()
terminal.PLAIN_EVERY = -1.0
shown.stage("01-probe/a", "fine-tune the base on a alone")
for step in range(1, 4):
    shown.progress(step, 4, "loss 1.000")
shown.finished("01-probe/a", {"seconds": 1.0})
shown.warning("something to act on")
scores = {m: {"a": {"metric": "exact_match", "score": s}} for m, s in (("base", 0.0), ("probe/a", 0.5), ("refine/1", 0.25))}
scores_table({"tasks": ["a"], "models": scores, "summary": summary(scores, ["a"])})
"""


def _shown(terminal: bool, **more: str) -> str:
    """What a process writes to a terminal of 100 columns, or into a pipe."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")}
    environment = {**kept, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **more}
    command = [sys.executable, "-c", SHOW]
    if not terminal:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        found = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux ends a terminal that nobody holds any more
                part = b""
            if not part:
                break
            found += part
    os.close(ours)
    assert process.returncode == 0, found.decode()
    return found.decode()


def test_a_terminal_has_a_bar_that_moves() -> None:
    """Share done, time left, and the bar taken away again."""
    found = _shown(True)
    assert "75 %" in found
    assert "0.0 s left" in found
    assert "━" in found
    assert "\x1b[2K" in found, "the line is cleared"


@pytest.mark.parametrize(("terminal", "more"), [(True, {"NO_COLOR": "1"}), (False, {})], ids=["NO_COLOR", "pipe"])
def test_lines_are_plain_where_they_must_be(terminal: bool, more: dict[str, str]) -> None:
    """No control sequence at all; stage, progress with time left, end, warning and the table."""
    found = _shown(terminal, **more)
    assert "\x1b" not in found
    assert "━" not in found
    for part in (
        "01-probe/a  fine-tune the base on a alone",
        "75%  loss 1.000  0.0 s left",
        "done in 1.0 s",
        "warning: something",
    ):
        assert part in found
    assert [line.split()[:4] for line in found.splitlines() if line.startswith("refine/1")] == [["refine/1", "=", "model", "25.0"]]  # fmt: skip


def test_the_table_says_how_wide_the_intervals_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 8 right of 32, Wilson's interval is 13.25 to 42.11 %, as statsmodels has it; of 1 of 32 it is narrower."""
    scores = {
        model: {"a": {"metric": "exact_match", "score": right / 32, "items": [1.0] * right + [0.0] * (32 - right)}}
        for model, right in (("base", 1), ("probe/a", 8))
    }
    scores_table({"tasks": ["a"], "models": scores, "summary": summary(scores, ["a"])})
    assert capsys.readouterr().out.splitlines()[-1] == "95 % intervals of the scores: at most ± 17.1 points"


def test_an_empty_no_color_is_none() -> None:
    """As https://no-color.org has it."""
    assert "\x1b[2K" in _shown(True, NO_COLOR="")


class Clock:
    """A monotonic clock of a machine that has been on for a day, moved by hand."""

    now = 86400.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    monkeypatch.setattr(terminal, "is_live", lambda: False)
    return clock


def test_time_left_counts_from_the_command_not_from_the_machine(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that reads bytes, off a terminal: 500 in 30 s, and 2500 are left."""
    tick = terminal.byte_progress(4000)
    for _ in range(3):
        tick(500)
        clock.now += 30
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("/s  ")[1:] for line in lines] == [[], ["2 min 30 s left"]]


def test_time_left_does_not_count_what_compiles(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """80 kB at 1 kB a second, the kernels compiled for 20 s within the second: 57 s are left at 23 kB, not 27 min at 2."""
    tick = terminal.byte_progress(80_000)
    tick(1000)
    clock.now += 20.5
    tick(1000)
    for _ in range(21):
        clock.now += 1
        tick(1000)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("/s  ")[1:] for line in lines] == [[], ["57.0 s left"]]


def test_time_left_of_a_resumed_training_counts_its_own_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed at step 500 of 1000, and a step a second since: 470 s are left, whatever was done before."""
    shown = terminal.Terminal()
    shown.stage("01-probe/a", "fine-tune")
    clock.now += 300  # the model loads
    for step in range(500, 531):
        shown.progress(step, 1000, "loss 1.000")
        clock.now += 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert lines == ["  50%  loss 1.000", "  52%  loss 1.000  7 min 59 s left"]
