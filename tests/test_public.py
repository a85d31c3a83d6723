"""The public names."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest

import cpift
from cpift.runs import usage

POSIX_ONLY = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "posix", "syslog", "readline"}


def test_the_public_names_are_these_and_can_be_used() -> None:
    """Each is what it says, also after its module was imported."""
    assert set(cpift.__all__) >= {"Recipe", "run", "identify", "Region", "group", "fuse", "freeze", "evaluate", "plan"}
    importlib.import_module("cpift.planning.plan")

    for name in cpift.__all__:
        assert callable(getattr(cpift, name)), name
        assert inspect.getdoc(getattr(cpift, name)), name


def test_no_module_needs_a_posix_system_to_be_imported() -> None:
    """Such a module is imported where it is used, with what to do without it."""
    needed = set()
    for file in Path(cpift.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            needed |= {f"{file.name}: {name}" for name in names if name.split(".")[0] in POSIX_ONLY}
    assert needed == set()


def test_peak_memory_where_the_system_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usage.peak_memory() > 2**20
    monkeypatch.setattr(usage, "_STATUS", Path("/nowhere/status"))
    assert usage.peak_memory() > 2**20, "by the resource module"
    monkeypatch.setitem(sys.modules, "resource", None)
    assert usage.peak_memory() == 0
