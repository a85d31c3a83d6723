"""Tables of what people extend: one entry is found in help, recipe check, report and docs alike."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plain
import pytest
from checkpoints import write
from typer.testing import CliRunner

from cpift.cli.main import app
from cpift.errors import CpiftError
from cpift.method.fuse import fuse
from cpift.method.interpolations import INTERPOLATIONS, Interpolation, Shares, Vectors, Weight
from cpift.method.overlap_rules import OVERLAP_RULES, Claims, Decision, OverlapRule
from cpift.method.region import Region
from cpift.recipe.stages import Fuse
from cpift.recipe.template import template
from cpift.report import figures_fusion
from cpift.table import Table

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Colour:
    name: str
    summary: str


def test_a_table_keeps_its_order_and_refuses_a_name_twice_or_unknown() -> None:
    """Names in the order registered; a taken name and an unknown one are clear errors, the latter with the nearest."""
    colours = Table("colour", [Colour("red", "as blood"), Colour("blue", "as the sky")])
    colours.register(Colour("green", "as grass"))
    assert list(colours) == ["red", "blue", "green"]
    assert colours.names() == "red | blue | green"
    assert colours.help() == "red: as blood; blue: as the sky; green: as grass"
    assert colours.choose("green", "wall.colour").summary == "as grass"
    with pytest.raises(CpiftError, match="colour red: the name is taken"):
        colours.register(Colour("red", "again"))
    with pytest.raises(CpiftError, match=r"wall\.colour: gren is none of red, blue, green; did you mean 'green'\?"):
        colours.choose("gren", "wall.colour")
    with pytest.raises(ValueError, match="is none of"):
        colours.check("grey?")


@pytest.fixture
def from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpolation and an overlap rule that a package of someone else's would add."""
    for table in (INTERPOLATIONS, OVERLAP_RULES):
        monkeypatch.setattr(table, "_entries", dict(table))

    def last(vectors: Vectors, weight: Weight) -> Shares:
        return Shares(np.array([0.0] * (vectors.count - 1) + [1.0]))

    def lowest(claims: Claims) -> Decision:
        values = np.where(claims.claimed, claims.values, np.inf)
        return Decision(values.min(axis=0), values == values.min(axis=0))

    INTERPOLATIONS.register(Interpolation("last", "the last task", "the last task alone", "this test", last))
    OVERLAP_RULES.register(OverlapRule("lowest", "the lowest value stands", "the lowest value", "this test", lowest))


@pytest.mark.usefixtures("from_outside")
def test_an_entry_from_outside_is_found_everywhere(tmp_path: Path) -> None:
    """Help, recipe check, template, fusion and report know it as they know the built-in ones."""
    shown = " ".join(CliRunner().invoke(app, ["fuse", "--help"]).output.split())
    assert "last the last task alone" in shown
    assert "lowest the lowest value" in shown
    part = Fuse(overlap="lowest", interpolation="last")
    assert (part.overlap, part.interpolation) == ("lowest", "last")
    with pytest.raises(ValueError, match="last takes all models alike"):
        Fuse(interpolation="last", weight=0.5)
    assert re.search(r"overlap: largest +# .* \| lowest\n", template())
    assert re.search(r"interpolation: slerp +# .* \| last\n", template())

    rng = np.random.default_rng(0)
    base, first, second = ({"a.weight": rng.standard_normal((4, 6)).astype(np.float32)} for _ in range(3))
    places = [write(tmp_path / name, weights) for name, weights in (("b", base), ("x", first), ("y", second))]
    positions = {"x": [1, 3, 5], "y": [3, 5, 8]}
    regions = {task: Region({"a.weight": np.array(p, np.int32)}, 24) for task, p in positions.items()}
    report = fuse(
        places[0], {"x": places[1], "y": places[2]}, tmp_path / "o", regions=regions, interpolation="last", overlap="lowest"
    )  # fmt: skip
    x, y = first["a.weight"].ravel(), second["a.weight"].ravel()
    expected = y.copy()
    expected[1] = x[1]
    expected[[3, 5]] = np.minimum(x[[3, 5]], y[[3, 5]])
    assert np.array_equal(plain.load(tmp_path / "o")["a.weight"].ravel(), expected)
    assert report["won"] == {"x": 1 + int((x < y)[[3, 5]].sum()), "y": 1 + int((y < x)[[3, 5]].sum())}

    facts: Any = SimpleNamespace(fusion=report, tasks=["x", "y"], stages={})
    assert "the rest is the last task of the weights" in figures_fusion.said(facts)
    assert any("the lowest value stands" in str(figure) for figure in figures_fusion.fusion(facts))


def test_unknown_names_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    """From Python as from the recipe, with the nearest name."""
    with pytest.raises(CpiftError, match=r"interpolation: slrep is none of .*; did you mean 'slerp'"):
        fuse(tmp_path / "no", {"x": tmp_path / "no"}, tmp_path / "o", interpolation="slrep")
    with pytest.raises(CpiftError, match="overlap: biggest is none of largest, order, mean"):
        fuse(tmp_path / "no", {"x": tmp_path / "no"}, tmp_path / "o", overlap="biggest")


def test_the_docs_hold_the_tables_as_they_are() -> None:
    """scripts/doc_tables.py would change nothing."""
    code = "import doc_tables as d; [print(p.name) for p in d.DOCS.glob('*.md') if d.filled(t := p.read_text()) != t]"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout == ""
