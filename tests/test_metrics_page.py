"""docs/metrics.md: its table is that of the code, its recipes can be read."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from cpift.metrics import METRICS
from cpift.recipe.recipe import Recipe

FILE = Path(__file__).parents[1] / "docs/metrics.md"


def filled(page: str) -> str:
    lines = ["| metric | what it gives | what a row needs |", "|---|---|---|"]
    lines += [f"| `{metric.name}` | {metric.summary} | {metric.rows} |" for metric in METRICS.values()]
    start, end = "<!-- metrics -->\n", "<!-- end -->"
    return page[: page.index(start)] + start + "\n".join(lines) + "\n" + page[page.index(end) :]


def test_the_table_is_that_of_the_code() -> None:
    """``python tests/test_metrics_page.py`` writes it anew."""
    page = FILE.read_text(encoding="utf-8")
    assert page == filled(page)


def test_the_recipes_can_be_read() -> None:
    """Every example of tasks."""
    found = re.findall(r"```yaml\n(.*?)```", FILE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found
    for text in found:
        Recipe.parse({"model": "m", **yaml.safe_load(text)})


if __name__ == "__main__":
    FILE.write_text(filled(FILE.read_text(encoding="utf-8")), encoding="utf-8")
