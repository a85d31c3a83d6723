"""A newcomer's additions: a metric, a shape of rows, a method of compare and a source of the backbone, from outside.

Each takes a few lines, and is then found in help, recipe check, template, report and comparison. Interpolations and
overlap rules are in test_tables.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

from cpift.cli.main import app
from cpift.compare import compare
from cpift.compare.methods import METHODS, Method, is_form_of
from cpift.compare.methods.method import Budgeting
from cpift.data.shapes import SHAPES, Shape
from cpift.method.criteria import CRITERIA, Criterion
from cpift.metrics import METRICS
from cpift.metrics.metric import Metric, Scoring
from cpift.recipe.backbones import BACKBONES, BackboneSource
from cpift.recipe.recipe import Recipe
from cpift.recipe.stages import Backbone, RegionPart
from cpift.recipe.task import Task
from cpift.recipe.template import template


@pytest.fixture(autouse=True)
def from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a package of someone else's registers when it is imported."""
    for table in (METRICS, METHODS, SHAPES, BACKBONES, CRITERIA):
        monkeypatch.setattr(table, "_entries", dict(table))

    METRICS.register(
        Metric(
            name="letters",
            label="share of letters",
            summary="the share of a generated answer that is letters",
            rows="nothing",
            scoring=Scoring.GENERATED,
            axis="letters, %",
            judge=lambda asked: lambda text, row: sum(map(str.isalpha, text)) / max(1, len(text)),
        )
    )
    SHAPES.register(
        Shape(
            name="riddle",
            columns="riddle and solution",
            trained="the solution",
            rank=1,
            uses=("riddle", "solution"),
            recognises=lambda row: "riddle" in row,
            convert=lambda row: {"prompt": row["riddle"], "completion": row["solution"]},
        )
    )
    METHODS.register(
        Method(
            name="untrained",
            summary="the base, once more",
            trains="nothing",
            source="this test",
            run=lambda work: work.score("untrained", work.base),
            budgeting=Budgeting.NONE,
            variant_of="base",
        )
    )
    CRITERIA.register(Criterion("none", "no position", "of which none was kept", lambda choice: {}))
    BACKBONES.register(BackboneSource("first_group", "SFT on the first group", stages=lambda groups, tasks: groups[:1]))


def test_they_are_found_in_help_recipe_check_and_template() -> None:
    for command, words in {
        "compare": "untrained the base, once more",
        "evaluate": "letters the share of a generated answer that is letters",
        "data": "riddle riddle and solution",
    }.items():
        assert words in " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
    task = Task(train="x", eval="y", metric="letters", shape="riddle", columns={"riddle": "question"})
    assert (task.metric, task.shape) == ("letters", "riddle")
    backbone = Backbone.model_validate({"from": "first_group"})
    assert backbone.trained
    assert backbone.stages([["a"], ["b"]], ["a", "b"]) == [["a"]]
    assert RegionPart(by="none").entry.label == "of which none was kept"
    assert "| letters |" in template()
    assert "random | random_model | none" in template()
    assert "| first_group |" in template()
    assert is_form_of("untrained:seed=1", "base")


def test_they_are_found_in_a_comparison_and_its_report(tmp_path: Path) -> None:
    """Rows of the new shape, scored by the new metric, of a model by the new method."""
    tiny.base(tmp_path / "base")
    tasks: dict[str, Any] = {}
    for name in ("a", "b"):
        lines = [json.dumps({"riddle": f"{name} {i}? ", "solution": f"{i}"}) for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        tasks[name] = {"train": str(tmp_path / f"{name}.jsonl"), "eval": 3, "metric": "letters", "max_new_tokens": 4}
    recipe = Recipe.parse({"model": str(tmp_path / "base"), "tasks": tasks, "probe": {"steps": 1}})
    result = compare(recipe, tmp_path / "lab", ["untrained", "base"], [0], ["paper"], reference="base")
    assert result["tasks"]["a"]["metric"] == "letters"
    found = result["budgets"]["paper"]["untrained"]["0"]["scores"]
    assert found == result["budgets"]["paper"]["base"]["0"]["scores"]
    assert all(len(score["items"]) == 3 for score in found.values())
    page = (tmp_path / "lab/report.html").read_text()
    assert "letters, %" in page
    assert "untrained" in page
