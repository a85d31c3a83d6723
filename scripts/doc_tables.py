#!/usr/bin/env python3
"""Writes the tables in docs/ that are made from the code's tables: between ``<!-- table: NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from cpift.compare.methods import METHODS
from cpift.method.criteria import CRITERIA
from cpift.method.interpolations import INTERPOLATIONS
from cpift.method.overlap_rules import OVERLAP_RULES
from cpift.metrics import METRICS
from cpift.recipe.backbones import BACKBONES

DOCS = Path(__file__).parents[1] / "docs"


def rows(head: list[str], body: list[list[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def interpolations() -> str:
    """One line an interpolation, with what ``fuse.weight`` is to it."""
    body = [
        [f"`{e.name}`", e.summary, e.parameters.get("weight", "not read"), e.reference] for e in INTERPOLATIONS.values()
    ]
    return rows(["`fuse.interpolation`", "what", "`fuse.weight`", "from"], body)


def overlap_rules() -> str:
    """One line a rule."""
    body = [[f"`{e.name}`", e.summary, e.reference] for e in OVERLAP_RULES.values()]
    return rows(["`fuse.overlap`", "whose value the position takes", "from"], body)


def metrics() -> str:
    """One line a metric, with what it asks of a row."""
    body = [[f"`{e.name}`", e.summary, e.rows] for e in METRICS.values()]
    return rows(["`metric`", "what it gives", "what a row needs"], body)


def metric_settings() -> str:
    """One line a setting, with the metrics that have it."""
    owners: dict[tuple[str, str, str], list[str]] = {}
    for metric in METRICS.values():
        for name, field in metric.settings.model_fields.items():
            default = (
                "needed" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
            )
            described = " ".join(str(field.description).split())
            owners.setdefault((name, default, described), []).append(f"`{metric.name}`")
    body = [[", ".join(names), f"`{name}`", default, what] for (name, default, what), names in owners.items()]
    return rows(["metric", "setting", "default", "what"], body)


def methods() -> str:
    """One line a method of ``compare``, with the budgets that it is run under."""
    body = []
    for e in METHODS.values():
        budgets = ["`paper`, `equal_tokens`"] * bool(e.run) + ["`incremental`"] * bool(e.arrive)
        body.append([f"`{e.name}`", e.summary, e.trains, ", ".join(budgets), e.source])
    return rows(["method", "what", "trains", "under", "from"], body)


def criteria() -> str:
    """One line a criterion of core positions."""
    body = [[f"`{e.name}`", e.summary, e.needs.value, e.reference] for e in CRITERIA.values()]
    return rows(["`region.by`", "which positions", "needs", "from"], body)


def backbones() -> str:
    """One line a source of the backbone."""
    return rows(
        ["`backbone.from`", "what the probes are fused into"], [[f"`{e.name}`", e.summary] for e in BACKBONES.values()]
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "backbone sources": backbones,
    "criteria": criteria,
    "interpolations": interpolations,
    "methods": methods,
    "metrics": metrics,
    "metric settings": metric_settings,
    "overlap rules": overlap_rules,
}


def filled(text: str) -> str:
    """The text of a page with its tables written anew."""
    pattern = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


if __name__ == "__main__":
    for page in DOCS.glob("*.md"):
        old = page.read_text(encoding="utf-8")
        if filled(old) != old:
            page.write_text(filled(old), encoding="utf-8")
            print(f"wrote {page}", file=sys.stderr)
