"""examples/seesaw.ipynb, every cell run in order as a notebook would, with a tiny model, few steps and few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

NOTEBOOK = Path(__file__).parents[1] / "examples" / "seesaw.ipynb"


def cells(kind: str) -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The seesaw is printed for each method, its numbers are those of comparison.json, and the page is there."""
    settings = {"MODEL": tiny.base(tmp_path / "base"), "STEPS": 2, "ROWS": 24, "OUT": tmp_path / "seesaw"}
    for name, value in settings.items():
        monkeypatch.setenv(f"SEESAW_{name}", str(value))
    place: dict[str, Any] = {}
    for number, source in enumerate(cells("code")):
        exec(compile(source, f"cell {number}", "exec"), place)
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "seesaw/lab/comparison.json").read_text())
    results = record["budgets"]["incremental"]
    assert sorted(results) == sorted(place["METHODS"])
    for method, seeds in results.items():
        part = printed.partition(f"{method}\n   parity, just learnt")[2].splitlines()
        shown = [line.split()[-1] for line in part[:3]]
        one, two = (arrival["scores"] for arrival in seeds["0"]["arrivals"])
        assert shown == [f"{score:.0%}" for score in (one["parity"], two["parity"], two["first"])]
    assert printed.count("decided") + printed.count("ahead") + printed.count("behind") == len(results) - 1
    assert (tmp_path / "seesaw/lab/report.html").is_file()


def test_the_notebook_says_what_the_model_is_and_that_it_is_no_evidence() -> None:
    text = " ".join(" ".join(cells("markdown")).split())
    assert "de-quantised from a Q4_1 GGUF" in text
    assert "no evidence" in text
