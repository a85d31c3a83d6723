"""The commented recipe that ``cpift init`` writes; the names of what people extend come from the tables."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from cpift.method.criteria import CRITERIA
from cpift.method.interpolations import INTERPOLATIONS
from cpift.method.overlap_rules import OVERLAP_RULES
from cpift.metrics import METRICS
from cpift.recipe.backbones import BACKBONES
from cpift.table import Entry

PLACEHOLDER = "path-or-hub-id"  # what stands for the model there

# A comment of template.yaml that holds <KEY> shows the names of this table there.
TABLES: Mapping[str, Mapping[str, Entry]] = {
    "metrics": METRICS,
    "criteria": CRITERIA,
    "backbone sources": BACKBONES,
    "interpolations": INTERPOLATIONS,
    "overlap rules": OVERLAP_RULES,
}


def template() -> str:
    """The text of the recipe, with all names that are registered now."""
    text = (files("cpift.recipe") / "template.yaml").read_text(encoding="utf-8")
    for key, table in TABLES.items():
        text = text.replace(f"<{key}>", " | ".join(table))
    return text
