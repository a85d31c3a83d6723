"""Killed, interrupted, told to end: started again, a run ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import preloaded
import pytest
from killing import torment
from tiny_run import same


def test_killed_at_random_moments(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """Five times; ``make soak`` does it fifty times."""
    assert torment(recipe, whole, tmp_path, kills=5, seed=1) >= 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("stage", ["01-probe/.reverse.partial", "06-refine/.2.partial"])
def test_told_to_stop(recipe: Path, whole: Path, tmp_path: Path, name: str, stage: str) -> None:
    """Within seconds, with how to go on; and it goes on to the same end."""
    out, said = tmp_path / "out", tmp_path / "said"
    process = preloaded.start(["run", str(recipe), "--out", str(out)], said)
    while process.is_alive() and not (out / "stages" / stage).exists():
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, getattr(signal, name))
    began = time.monotonic()
    process.join(30)
    assert time.monotonic() - began < 10
    assert process.exitcode == 130
    assert said.read_text().splitlines()[-1] == "stopped; run the same command again to go on"
    assert "Traceback" not in said.read_text()
    assert not (out / "model").exists()
    again = preloaded.start(["run", str(recipe), "--out", str(out)], said)
    again.join(120)
    assert again.exitcode == 0, said.read_text()
    assert same(out / "model", whole / "model")
