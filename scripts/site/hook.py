"""What mkdocs calls while it builds the site: pages made from the code, and what GitHub shows otherwise than a site."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import commands
import python_names
import recipe_keys
import run_files
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from text import as_lists

ROOT = Path(__file__).parents[2]
DRAWING = re.compile(r'<img alt="[^"]*" src="[./]*(images/concepts/[\w-]+\.svg)" ?/?>')


def _of_the_root(name: str) -> Callable[[], str]:
    """A page of the checkout's root, whose links lead into docs/."""
    return lambda: (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


GENERATED: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": commands.page,
    "reference/recipe.md": recipe_keys.page,
    "reference/python.md": python_names.page,
    "reference/files.md": run_files.page,
    "changes.md": _of_the_root("CHANGELOG.md"),
    "contributing.md": _of_the_root("CONTRIBUTING.md"),
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that the navigation lacks come at the end of Results or of How to."""
    listed = set(_pages(config.nav))
    sections = {name: entries for section in config.nav or [] for name, entries in section.items()}
    for file in sorted((ROOT / "docs").rglob("*.md")):
        name = file.relative_to(ROOT / "docs").as_posix()
        if name not in listed:
            sections["Results" if name.startswith("results/") else "How to"].append(name)
    return config


def _pages(entries: Any) -> Iterator[str]:
    """Files of a navigation, at any depth."""
    if isinstance(entries, str):
        yield entries
    for entry in entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ():
        yield from _pages(entry)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file of docs/ holds."""
    for name, page in GENERATED.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """GitHub wants a bar in a table's code escaped; here it would be shown with its backslash."""
    lines = (
        re.sub(r"`[^`]+`", lambda code: code[0].replace(r"\|", "|"), line) if line.startswith("|") else line
        for line in markdown.split("\n")
    )
    return "\n".join(lines)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Drawings become part of the page, so that they follow its scheme; marks of Sphinx in docstrings go; keys are lists."""
    html = html if page.file.src_uri in GENERATED else as_lists(html)
    html = DRAWING.sub(lambda image: (ROOT / "docs" / image[1]).read_text(encoding="utf-8"), html)
    return re.sub(r":\w+:<code>~?(?:[\w.]*\.)?(\w+)</code>", r"<code>\1</code>", html)
