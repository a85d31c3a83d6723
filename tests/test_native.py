"""Machine code of the compiled loops: kept, loaded without numba, and made anew where it is not what it should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpift.kernels import compile as compile_
from cpift.kernels import native


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where code is kept in place of the user's folder."""
    monkeypatch.setattr(native, "_folder", lambda: tmp_path)
    return tmp_path


def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the loops that are compiled from now on."""
    made: list[str] = []
    compiled = native.Loop._compiled
    monkeypatch.setattr(native.Loop, "_compiled", lambda self, free: made.append(self.name) or compiled(self, free))
    return made


def common(loop: native.Loop) -> tuple[int, int]:
    """What two sorted arrays have in common: 3 and 8, and at 8 the signs differ."""
    first, second = np.array([1, 3, 5, 8], np.int32), np.array([2, 3, 8], np.int64)
    return loop(first, second, np.array([True, True, True, True]), np.array([True, True, False]))


def test_code_is_compiled_once_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiles(monkeypatch)
    assert common(native.Loop("count_common")) == (2, 1)
    assert common(native.Loop("count_common")) == (2, 1)
    assert made == ["count_common"]
    assert [file.name.partition(".")[0] for file in folder.iterdir()] == ["count_common-int32-int64"]


@pytest.mark.parametrize("damage", ["cut", "changed", "other sources"])
def test_code_that_is_not_what_was_kept_is_made_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Of a file cut short, of one with a byte changed, and of one that older sources gave: it is replaced."""
    common(native.Loop("count_common"))
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-1])
    elif damage == "changed":
        file.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    else:
        monkeypatch.setattr(native, "_key", lambda: "f" * 16)
    made = compiles(monkeypatch)
    assert common(native.Loop("count_common")) == (2, 1)
    assert made == ["count_common"]
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("function", ["NRT_MemInfo_alloc_aligned", "a_function_that_there_is_not"])
def test_code_that_needs_numba_is_called_by_numba(folder: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """Loaded alone it would end the process; nothing is kept, and the result is the same."""
    alone = compile_.alone
    monkeypatch.setattr(compile_, "alone", lambda code: alone(f"{code}\ndeclare i8* @{function}(i64 %n)\n"))
    loop = native.Loop("count_common")
    assert (common(loop), common(loop)) == ((2, 1), (2, 1))
    assert not list(folder.iterdir())


def test_another_processors_code_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common(native.Loop("count_common"))
    monkeypatch.setattr(native, "_processor", lambda: "0" * 16)
    common(native.Loop("count_common"))
    assert len(list(folder.iterdir())) == 2


def test_the_key_changes_with_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that was edited must not run as it was before."""
    before = native._key.__wrapped__()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + (b" " if self.name == "scan.py" else b""))
    assert native._key.__wrapped__() != before


def test_beside_sources_that_are_read_only_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where all else is that can be made again."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("CPIFT_CACHE", str(tmp_path))
    monkeypatch.setattr(native.os, "access", lambda path, mode: False)
    assert native._folder.__wrapped__() == tmp_path / "kernels"


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the loop runs all the same."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(native, "_folder", lambda: tmp_path / "file" / "kernels")
    assert common(native.Loop("count_common")) == (2, 1)


@pytest.mark.parametrize(
    "entries",
    [np.zeros(4, np.int64), np.zeros(8, np.uint64)[::2], np.zeros((2, 2), np.uint64)],
    ids=["type", "stride", "shape"],
)
def test_an_array_that_the_loop_does_not_take_is_refused(entries: np.ndarray) -> None:
    """The loop sees an address alone: anything else would be read as what it is not."""
    with pytest.raises(TypeError, match="count_keys: takes no"):
        native.loop("count_keys")(entries, -1, np.zeros(2**16, np.int64))
