"""Tables of numbers: written as rich would draw them, and drawn by it where they must be folded."""

from __future__ import annotations

import pytest

from cpift.console import drawn, tables

HEADERS = ["pair", "overlap", "× chance", "same sign"]
ROWS = [["maths – code", "0.1234", "12.3", "–"], ["maths – a long name of a model", "0.0001", "0.1", "100%"]]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []])
def test_columns_stand_as_rich_has_them(
    rows: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the letter, the spaces at the ends of lines aside."""
    tables.numbers_table(HEADERS, rows)
    ours = capsys.readouterr().out
    monkeypatch.setattr(tables, "_is_narrow", lambda text: False)
    tables.numbers_table(HEADERS, rows)
    theirs = capsys.readouterr().out
    assert [line.rstrip() for line in ours.splitlines()] == [line.rstrip() for line in theirs.splitlines()]
    assert len(ours.splitlines()) == 2 + len(rows)


def test_what_is_too_wide_is_folded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of 30 columns no line is longer, and no letter is lost."""
    for module in (tables, drawn):
        monkeypatch.setattr(module, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    tables.numbers_table(HEADERS, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 30
    assert "".join("".join(lines).split()).count("0.1234") == 1


def test_letters_of_two_columns_are_left_to_rich(capsys: pytest.CaptureFixture[str]) -> None:
    """It knows how wide they are: the numbers behind them stand in one column."""
    tables.numbers_table(["model", "score"], [["数学", "1.0"], ["maths", "2.0"]])
    assert capsys.readouterr().out.splitlines()[2:] == ["数学     1.0", "maths    2.0"]
