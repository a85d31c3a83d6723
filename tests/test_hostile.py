"""What a stranger might hand over (``tests/hostile/``): one line, exit code 2, in bounds, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from hostile_cases import cases, lay_out, make_sound, run_limited

CASES = cases()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with tiny_run.one_thread():
        return make_sound(tmp_path_factory.mktemp("sound"))


def everything(place: Path) -> dict[str, Any]:
    """What lies in a folder, without opening what must not be opened."""
    return {str(p.relative_to(place)): os.lstat(p).st_mtime_ns for p in place.rglob("*") if not p.is_dir()}


def test_there_are_at_least_sixty() -> None:
    """Of every kind some."""
    assert len(CASES) >= 60
    assert {case["kind"] for case in CASES.values()} == {"recipe", "data", "checkpoint", "region"}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(sound: Path, tmp_path: Path, name: str) -> None:
    """By every command that reads it."""
    case, place = CASES[name], tmp_path / "here"
    commands = lay_out(case, place, sound)
    before = everything(place)
    assert commands
    for command, arguments in commands.items():
        code, said = run_limited(arguments, place, tmp_path / "said")
        lines = said.splitlines()
        assert code == 2, (command, code, said[-2000:])
        assert "Traceback" not in said, command
        assert lines, command
        assert lines[-1].startswith("cpift: "), (command, said[-2000:])
        assert case["says"] in lines[-1], (command, lines[-1][:2000])
        assert len(lines) == 1, (command, said[-2000:])
        assert len(lines[0]) < 3000, (command, len(lines[0]))
        assert lines[0].isprintable(), (command, lines[0])
        assert everything(place) == before, command
        assert not (place / "out").exists(), command


def test_what_is_sound_is_not_refused(sound: Path, tmp_path: Path) -> None:
    """Or the cases would show nothing."""
    for kind in ("checkpoint", "region"):
        for command, arguments in lay_out({"kind": kind}, tmp_path / kind, sound).items():
            code, said = run_limited(arguments, tmp_path / kind, tmp_path / "said")
            assert code == 0, (command, said)
            (tmp_path / kind / "out").rename(tmp_path / f"{kind}-{command}")
    for model in (False, True):
        place = tmp_path / f"run{model}"
        for arguments in lay_out(
            {"kind": "checkpoint", "model": model, "only": ["run", "plan"]}, place, sound
        ).values():
            code, said = run_limited(
                [*arguments, *(["--until", "identify"] if arguments[0] == "run" else [])], place, tmp_path / "said"
            )
            assert code == 0, said
