"""What a stage finds stays with it: a resumed run, the report, the model card and scores.json have it, with its remedy."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
from report_folders import LEAKED, made_run, recipe
from tiny_run import Listener, copy

from cpift.files import layout
from cpift.files.findings import OLDER, REMEDIES, Finding, distinct, finding, read_findings
from cpift.recipe.recipe import Recipe
from cpift.report.facts import read_run
from cpift.runs.executor import Runner
from cpift.runs.pipeline import run
from cpift.runs.stage import Facts, Run, Stage

SOURCE = Path(layout.__file__).parents[1]
OWNER = "02-identify/upper"
OLD = "task upper: a warning of an earlier version"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Listener, dict[str, Any]]]:
    """A finished run one of whose stages has found everything, and another of an earlier version; run again."""
    with tiny_run.one_thread():
        whole = tiny_run.finished_run(tmp_path_factory)
        out, listener = copy(whole, tmp_path_factory.mktemp("findings") / "out"), Listener()
        file = out / "stages" / OWNER / "stage.json"
        made = json.loads(file.read_text())
        made["facts"]["findings"] = [finding(code, f"upper: {code}", OWNER).to_dict() for code in REMEDIES]
        file.write_text(json.dumps(made))
        older = out / "stages/00-tasks/upper/stage.json"
        made = json.loads(older.read_text())
        del made["facts"]["findings"]
        made["facts"]["warnings"] = [OLD]
        older.write_text(json.dumps(made))
        result = run(Recipe.parse(tiny.recipe(whole.parent)), out, reporter=listener)
        assert listener.made == []
        yield out, listener, result


@pytest.mark.parametrize("code", REMEDIES)
def test_a_resumed_run_keeps_the_finding(resumed: tuple[Path, Listener, dict[str, Any]], code: str) -> None:
    out, listener, result = resumed
    record = {"code": code, "stage": OWNER, "text": f"upper: {code}", "remedy": REMEDIES[code]}
    assert record in result["findings"]
    assert record in json.loads((out / "scores.json").read_text())["findings"]
    assert listener.said.count(f"upper: {code}") == 1
    assert f"- upper: {code}\n" in (out / "model/README.md").read_text()
    page = html.unescape((out / "report.html").read_text())
    assert f"upper: {code}" in page
    assert REMEDIES[code] in page


def test_a_warning_of_an_earlier_version_is_kept_as_text(resumed: tuple[Path, Listener, dict[str, Any]]) -> None:
    out, listener, result = resumed
    (old,) = [found for found in result["findings"] if found["code"] == OLDER]
    assert (old["stage"], old["text"]) == ("00-tasks/upper", OLD)
    assert OLD in listener.said
    assert OLD in (out / "model/README.md").read_text()
    assert OLD in html.unescape((out / "report.html").read_text())


def test_a_stage_writes_what_it_finds_and_no_other_stage_does(tmp_path: Path) -> None:
    def stage(name: str) -> Stage:
        def action(folders: Mapping[str, Path]) -> Facts:
            current.add(finding("one-group", f"{name} is one group", name))
            return {name: {}}

        return Stage(name, "group", name, {}, (), action)

    for reporter in (first := Listener(), again := Listener()):
        current = Run(recipe(["a"]), tmp_path, reporter)
        Runner(current).make([stage("x"), stage("y")])
        assert [found.stage for found in current.findings] == ["x", "y"]
    for listener in (first, again):
        assert [text for text in listener.said if "one group" in text] == ["x is one group", "y is one group"]
    made = json.loads((tmp_path / "stages/x/stage.json").read_text())
    assert [found["text"] for found in made["facts"]["findings"]] == ["x is one group"]
    assert again.kept == ["x", "y"]


def test_what_was_shown_before_its_stage_is_not_shown_again(tmp_path: Path) -> None:
    """The check before a run sees cut rows; the probe, which owns them, finds them again."""
    listener = Listener()
    current = Run(recipe(["a"]), tmp_path, listener)
    warning = finding("rows-cut", "task a: 3 of 10 rows are cut")
    current.show(warning)
    assert current.findings == []
    current.add(warning.of("01-probe/a"))
    assert current.findings == [replace(warning, stage="01-probe/a")]
    assert listener.said == [warning.text]


def test_every_code_is_raised_somewhere_and_no_other() -> None:
    texts = [file.read_text() for file in SOURCE.rglob("*.py") if file.name != "findings.py"]
    raised = {
        code for text in texts for code in re.findall(r"\bfinding\(\s*((?:\"[a-z0-9-]+\"(?: if \w+ else )?)+)", text)
    }
    assert {code for group in raised for code in re.findall(r'"([a-z0-9-]+)"', group)} == set(REMEDIES)


def test_damaged_findings_are_left_out_and_texts_come_once() -> None:
    whole = finding("rows-cut", "t", "s")
    record = {"findings": [whole.to_dict(), {"code": "rows-cut"}, "x", None], "warnings": ["t", "u", 3]}
    found = read_findings(record, "s")
    assert [(one.code, one.text) for one in found] == [("rows-cut", "t"), (OLDER, "t"), (OLDER, "u")]
    assert [(one.code, one.text) for one in distinct(reversed(found))] == [(OLDER, "u"), ("rows-cut", "t")]
    assert read_findings({"findings": 3, "warnings": "no list"}) == []
    assert Finding(**whole.to_dict()) == whole


def test_the_report_of_an_older_folder_shows_its_warnings(tmp_path: Path) -> None:
    def older(folder: Path) -> None:
        file = folder / "stages/00-tasks/a/stage.json"
        made = json.loads(file.read_text())
        del made["facts"]["findings"]
        made["facts"]["warnings"] = [OLD]
        file.write_text(json.dumps(made))

    found = read_run(made_run(tmp_path / "run", ["a", "b"], change=older)).findings
    assert [(one.code, one.stage, one.text) for one in found if one.text != LEAKED.text] == [(OLDER, "00-tasks/a", OLD)]
