"""Pages with tables of what people extend: they are those of the code, and their recipes can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from cpift.compare.methods import METHODS
from cpift.metrics import METRICS
from cpift.recipe.recipe import Recipe

DOCS = Path(__file__).parents[1] / "docs"


def metrics() -> Iterable[tuple[str, ...]]:
    yield "metric", "what it gives", "what a row needs"
    yield from ((f"`{metric.name}`", metric.summary, metric.rows) for metric in METRICS.values())


def methods() -> Iterable[tuple[str, ...]]:
    yield "method", "what", "trains", "run", "from"
    for method in METHODS.values():
        budgets = ["`paper`, `equal_tokens`"] * bool(method.run) + ["`incremental`"] * bool(method.arrive)
        yield f"`{method.name}`", method.summary, method.trains, ", ".join(budgets), method.source


TABLES = {"metrics.md": ("metrics", metrics), "compare.md": ("methods", methods)}


def filled(file: str) -> tuple[str, str]:
    """A page as it is, and with its table made anew."""
    page, (name, rows) = (DOCS / file).read_text(encoding="utf-8"), TABLES[file]
    head, *body = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows()]
    table = "\n".join([head, "|---" * (head.count("|") - 1) + "|", *body])
    return page, re.sub(
        rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{table}\n{m[2]}", page, flags=re.DOTALL
    )


@pytest.mark.parametrize("file", TABLES)
def test_the_table_is_that_of_the_code(file: str) -> None:
    """``python tests/test_table_pages.py`` writes them anew."""
    page, wanted = filled(file)
    assert page == wanted


def test_the_recipes_can_be_read() -> None:
    """Every example of tasks."""
    found = re.findall(r"```yaml\n(.*?)```", (DOCS / "metrics.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found
    for text in found:
        Recipe.parse({"model": "m", **yaml.safe_load(text)})


if __name__ == "__main__":
    for name in TABLES:
        (DOCS / name).write_text(filled(name)[1], encoding="utf-8")
