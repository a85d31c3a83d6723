"""Commands, options, files and functions that README and docs name exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from cpift.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCE = ROOT / "src" / "cpift"


def commands_of(text: str) -> list[str]:
    """Every ``cpift …`` of a page: lines of code blocks, and inline code."""
    joined = text.replace("\\\n", " ")
    blocks = re.findall(r"^```\w*(?: title=[^\n]*)?\n(.*?)^```", joined, re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", joined, flags=re.M | re.S)
    lines += re.findall(r"`(cpift [^`]+)`", prose)
    return [line for line in lines if re.match(r"cpift\s+[a-z-]", line)]


def mistake_of(line: str) -> str | None:
    """What of a command line does not exist; None where all does."""
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while words and (inner := getattr(command, "commands", None)) and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in inner:
            return f"no command {name}"
        command = inner[name]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"no option {unknown[0]}" if unknown else None


def test_an_unknown_command_or_option_is_seen() -> None:
    """The check itself can fail, also behind a line break and in a group of commands."""
    text = "```sh\ncpift run r.yaml \\\n  --oot x\n```\nand `cpift nothing` or `cpift patch apply A B --out x --hard`"
    assert [mistake_of(line) for line in commands_of(text)] == [
        "no option --oot",
        "no command nothing",
        "no option --hard",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_docs_exist(page: Path) -> None:
    """Each command has the options that the page shows; the page has no marks of a merge conflict."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^(<{7}|>{7}|={7}$)", text, re.M), f"{page}: a merge conflict"
    mistakes = [f"{line}: {mistake}" for line in commands_of(text) if (mistake := mistake_of(line))]
    assert not mistakes


def test_design_names_modules_and_functions_that_exist() -> None:
    """Each file of the table "Where to look" has the functions named behind it."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = text.partition("## Where to look")[2].partition("\n## ")[0]
    entries = re.findall(r"`([\w/]+\.py)`(?: \(([^)]*)\))?", table)
    assert len(entries) >= 10
    for file, names in entries:
        code = (SOURCE / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^\s*(def|class) {name}\b|^{name}\b.*=|^\s*{name} = ", code, re.M), f"{file}: no {name}"


def test_readme_is_short() -> None:
    """At most 700 words."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700
