"""The commands of the site's first pages, how-to pages and concepts, run one after the other as a reader would.

Names in capitals stand for the reader's own checkpoints; the model of the recipe is a tiny one. Commands of several
machines, of the hub and of GPUs are only looked at (test_docs_commands.py).
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import tiny
from test_docs_commands import commands_of
from typer.testing import CliRunner

from cpift.cli.main import app

DOCS = Path(__file__).parents[1] / "docs"
FEW = ["--set", "probe.steps=2", "--set", "refine.examples_per_task=4", "--set", "guard=none"]
CAPITALS = {
    "BASE": "base",
    "B": "base",
    "A1": "runs/mine/stages/01-probe/sums",
    "A2": "runs/mine/stages/01-probe/letters",
}
ELSEWHERE = (
    "--jobs",
    "--mirror",
    "--gpus",
    "MODEL",
    "ADAPTER",
    "--format lora",
    "--percent 10",
    "--compare",
    "cpift compare",
    "org/name",
)
"""Words of commands that need another machine, take long, or repeat one that is run."""


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def files_of(text: str) -> dict[str, str]:
    """Code blocks with a title, which are files of the reader."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', text, re.M | re.S))


def run_line(line: str) -> str:
    """One command as the page shows it, with few steps where it trains."""
    words = [re.sub(r"(?<![^=])([A-Z][A-Z0-9]*)$", lambda w: CAPITALS[w[1]], word) for word in shlex.split(line)[1:]]
    few = (
        FEW
        if words[0] == "run"
        else ["--set", "arrivals.epochs=0.1", "--set", "guard=none"]
        if words[0] == "add"
        else []
    )
    done = CliRunner().invoke(app, [*words, *few], catch_exceptions=False)
    assert done.exit_code == 0, f"{line}: {done.output}"
    return done.output


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder after the first page."""
    folder = tmp_path_factory.mktemp("reader")
    text = page("start/first-model")
    files = files_of(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny.base(folder / "base")
        (folder / "rows.py").write_text(files["rows.py"])
        runpy.run_path("rows.py")
        recipe, changed = re.subn(r"^model: \S+", "model: base", files["recipe.yaml"], flags=re.M)
        assert changed == 1
        (folder / "recipe.yaml").write_text(recipe)
        lines = [line for line in commands_of(text) if line.startswith("cpift ") and "compare" not in line]
        for line in lines:
            if not line.startswith("cpift init"):
                run_line(line)
    assert [line.split()[1] for line in lines] == ["data", "plan", "run", "status", "init"]
    return folder


@pytest.fixture
def inside(reader: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(reader)
    return reader


def test_the_first_page_ends_with_a_model_and_a_report(inside: Path) -> None:
    """Both files of rows were read, both tasks are scored, and the model speaks through transformers."""
    scores = json.loads(Path("runs/mine/scores.json").read_text())["models"]
    assert {"base", "probe/sums", "probe/letters", "fused"} <= set(scores)
    assert (inside / "runs/mine/report.html").is_file()
    (inside / "use.py").write_text(files_of(page("start/first-model"))["use.py"])
    runpy.run_path("use.py")


def test_the_second_page_adds_a_skill_to_that_model(inside: Path) -> None:
    text = page("start/add-a-skill")
    (inside / "more_rows.py").write_text(files_of(text)["more_rows.py"])
    runpy.run_path("more_rows.py")
    lines = [line for line in commands_of(text) if line.startswith("cpift add ") and "--compare" not in line]
    assert len(lines) == 1
    run_line(lines[0])
    assert (inside / "both/model/config.json").is_file()
    assert (inside / "both/report.html").is_file()


def test_commands_of_how_to_and_concepts_run(inside: Path) -> None:
    """In the order of the pages, so that fuse finds the regions of identify."""
    pages = ["concepts/core-regions", "concepts/overlap", "concepts/fusion", "concepts/half-precision"]
    pages += [f"howto/{file.stem}" for file in sorted((DOCS / "howto").glob("*.md"))]
    ran = []
    for name in pages:
        for line in commands_of(page(name)):
            named_only = len(line.split()) == 2
            if named_only or any(word in line for word in ELSEWHERE) or line in ran:
                continue
            if line.startswith(("cpift run", "cpift add")) and "--dry-run" not in line:
                continue  # the first page's
            run_line(line)
            ran.append(line)
    assert {line.split()[1] for line in ran} >= {"identify", "diff", "fuse", "data", "export", "apply", "report", "status", "run"}  # fmt: skip


def test_numbers_on_the_page_on_p_are_those_of_the_experiment() -> None:
    """Each row of its table is one of M1's: share, top alone, random alone."""
    measured = {
        tuple(row.split(" | ")[k] for k in (0, 2, 3)) for row in re.findall(r"^\| (\d.*) \|$", page("results/m1"), re.M)
    }
    shown = {tuple(row.split(" | ")) for row in re.findall(r"^\| (\d.*) \|$", page("howto/choose-p"), re.M)}
    assert len(shown) == 5
    assert shown <= measured
