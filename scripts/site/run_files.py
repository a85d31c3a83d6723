"""The reference of files: formats found in the code, the run folder as docs/design.md has it, records by mkdocstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from text import plain, table

ROOT = Path(__file__).parents[2]
_FORMAT = re.compile(r"\"(cpift\.\w+/\d+)\"")
_PARTS = ("The run folder", "The region file (`cpift.region/1`)")
_RECORDS = ("cpift.files.records", "cpift.metrics.comparison", "cpift.metrics.score")

_INTRO = """# Files

Every file of `cpift` says its format and version. All tensors are in safetensors files, all else is JSON or YAML.
"""


def page() -> str:
    """Formats, the run folder, the region file, and what the JSON files hold."""
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    parts = [_INTRO, "## Formats", table(["format", "what it is", "written by"], _formats())]
    for title in _PARTS:
        # The next heading ends a part.
        parts.append(f"## {title}\n{design.partition(f'## {title}')[2].partition(chr(10) + '## ')[0]}")
    parts.append("## Records of the JSON files")
    parts += [f"::: {module}\n    options:\n      heading_level: 3" for module in _RECORDS]
    return "\n\n".join(parts).replace("](", "](../") + "\n"


def _formats() -> list[list[str]]:
    """Name, meaning and module of each format, from the modules that write them."""
    source = ROOT / "src"
    rows: dict[str, list[str]] = {}
    for file in sorted(source.rglob("*.py")):
        code = file.read_text(encoding="utf-8")
        for name in _FORMAT.findall(code):
            summary = (ast.get_docstring(ast.parse(code)) or "").partition("\n\n")[0]
            module = ".".join(file.relative_to(source).with_suffix("").parts)
            rows.setdefault(name, [f"`{name}`", plain(summary), f"`{module}`"])
    return [rows[name] for name in sorted(rows)]
