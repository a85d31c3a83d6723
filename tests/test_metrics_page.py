"""docs/metrics.md: its recipes can be read. (Its table is looked at with all others, in test_tables.py.)"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from cpift.recipe.recipe import Recipe


def test_the_recipes_can_be_read() -> None:
    """Every example of tasks."""
    page = (Path(__file__).parents[1] / "docs/metrics.md").read_text(encoding="utf-8")
    found = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert found
    for text in found:
        Recipe.parse({"model": "m", **yaml.safe_load(text)})
