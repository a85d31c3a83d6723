"""One process at a time in a folder; a killed one holds nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cpift.errors import CpiftError
from cpift.files.lock import alone, in_use

HOLD = """
import sys, time
from pathlib import Path
from cpift.files.lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_refused_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        assert in_use(out)
        message = f"{out}: another cpift is at work in this folder; wait for it, or choose another --out"
        with pytest.raises(CpiftError) as caught, alone(out):
            pass
        assert str(caught.value) == message
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert not in_use(out)
    with alone(out):
        assert in_use(out)
        with pytest.raises(CpiftError, match="another cpift is at work"), alone(out):
            pass
    assert not in_use(out)
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_look_writes_nothing(tmp_path: Path) -> None:
    assert not in_use(tmp_path / "none")
    assert not in_use(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CpiftError, match=r"file/out: cannot be made .* choose another --out"),
        alone(tmp_path / "file/out"),
    ):
        pass
