"""What depends on a metric stands in its own file: nothing else asks its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import cpift
from cpift.metrics import METRICS

SOURCE = Path(cpift.__file__).parent


def asked_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that compare something called a metric, or a name of one, with the text of a metric's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides, others = [node.left, *node.comparators], [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            sides = [node.subject]
            others = [part for case in node.cases for part in ast.walk(case.pattern) if isinstance(part, ast.expr)]
        else:
            continue
        texts = {part.value for side in others for part in ast.walk(side) if isinstance(part, ast.Constant)}
        called = " ".join(ast.unparse(side) for side in sides)
        if texts & set(METRICS) and ("metric" in called or ".name" in called or "kind" in called):
            yield node.lineno, called


def test_no_code_asks_for_a_metrics_name() -> None:
    """Units, orientation, formats and intervals come from the table. A metric's own file may name it."""
    found = [
        f"{file.relative_to(SOURCE)}:{line}: {text}"
        for file in sorted(SOURCE.rglob("*.py"))
        for line, text in asked_names(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_the_look_finds_what_it_looks_for() -> None:
    source = """
if metric == "loss": pass
if score["metric"] in ("judge", "code"): pass
match task.metric:
    case "exact_match": pass
if "loss" in logs: pass
"""
    assert sorted(line for line, _ in asked_names(ast.parse(source))) == [2, 3, 4]


def test_a_metric_has_all_that_others_need_of_it() -> None:
    """A unit that can write a value and a difference, an axis, a direction; a bound where scores are shares."""
    for metric in METRICS.values():
        assert metric.value(0.5).endswith(metric.unit.short)
        assert metric.unit.difference
        assert metric.gain(1.0, 0.5) == (0.5 if metric.higher_is_better else -0.5)
        assert metric.unit.bounded == (metric.unit.highest is not None)
