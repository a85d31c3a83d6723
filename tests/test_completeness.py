"""Whether a base is complete is asked of transformers once; what passed is kept for other processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import family, write

from cpift.checkpoint import completeness
from cpift.checkpoint.reader import open_checkpoint
from cpift.errors import CpiftError

FUSE = """
import sys
from cpift import fuse
fuse(sys.argv[1], {"a": sys.argv[2]}, sys.argv[3])
print("torch" in sys.modules or "transformers" in sys.modules)
"""


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that transformers is asked about from now on, as a new process would ask."""
    asked: list[Path] = []
    load = completeness._load
    monkeypatch.setattr(completeness, "_load", lambda *a, **k: (asked.append(a[0]), load(*a, **k))[1])
    monkeypatch.setattr(completeness, "_PASSED", set())
    return asked


def test_a_verdict_is_kept_for_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process asks; the next neither asks nor imports torch; another version of transformers is asked again."""
    monkeypatch.setenv("CPIFT_CACHE", str(tmp_path / "cache"))
    base, task = family(tmp_path, "llama", tasks=1)
    asked = counted(monkeypatch)
    completeness.check_complete(open_checkpoint(base))
    assert len(asked) == 1
    completeness._PASSED.clear()
    completeness.check_complete(open_checkpoint(task))  # the same names, shapes and configuration
    assert len(asked) == 1
    command = [sys.executable, "-c", FUSE, str(base), str(task), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
    completeness._PASSED.clear()
    monkeypatch.setattr(completeness, "version", lambda name: "0.0.1")
    completeness.check_complete(open_checkpoint(base))
    assert len(asked) == 2


def test_what_was_refused_is_refused_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight less is another checkpoint than the one that passed; failures are not kept."""
    monkeypatch.setenv("CPIFT_CACHE", str(tmp_path / "cache"))
    (base,) = family(tmp_path, "llama", tasks=0)
    asked = counted(monkeypatch)
    whole = open_checkpoint(base)
    completeness.check_complete(whole)
    kept = {n: whole.raw(n).reshape(t.shape) for n, t in whole.tensors.items() if not n.endswith("norm.weight")}
    broken = open_checkpoint(write(tmp_path / "broken", kept, config=dict(whole.config)))
    for _ in range(2):
        with pytest.raises(CpiftError, match="lacks weights"):
            completeness.check_complete(broken)
    assert len(asked) == 3
