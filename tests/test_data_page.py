"""docs/data.md: its tables are those of the code, its recipes can be read."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from cpift.data.files import COMPRESSED, KINDS
from cpift.data.shapes import SHAPES
from cpift.data.shapes.turns import ROLES
from cpift.recipe.recipe import Recipe

FILE = Path(__file__).parents[1] / "docs/data.md"


def table(name: str) -> str:
    if name == "shapes":
        rows = [("shape", "columns", "the loss is taken on")]
        rows += [(f"`{shape.name}`", shape.columns, shape.trained) for shape in SHAPES.values()]
    else:
        rows = [("kind", "names", "")]
        rows += [(kind.name, ", ".join(f"`{suffix}`" for suffix in kind.suffixes), kind.note) for kind in KINDS]
    head, *body = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    return "\n".join([head, "|---|---|---|", *body])


def filled(page: str) -> str:
    for name in ("shapes", "files"):
        page = re.sub(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", rf"\1{table(name)}\2", page, flags=re.DOTALL)
    return page


def test_the_tables_are_those_of_the_code() -> None:
    """``python tests/test_data_page.py`` writes them anew."""
    page = FILE.read_text(encoding="utf-8")
    assert page == filled(page)
    for role in ROLES:
        assert f"`{role}`" in page
    for suffix in COMPRESSED:
        assert f"`{suffix}`" in page


def test_the_recipes_can_be_read() -> None:
    """Every example of tasks."""
    found = re.findall(r"```yaml\n(.*?)```", FILE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(found) == 3
    for text in found:
        data = yaml.safe_load(text)
        for task in data["tasks"].values():
            task.setdefault("eval", 100)
        Recipe.parse({"model": "m", **data})


if __name__ == "__main__":
    FILE.write_text(filled(FILE.read_text(encoding="utf-8")), encoding="utf-8")
