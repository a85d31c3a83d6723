"""What a real tiny run leaves for people: the model card, the report, the neutral loss, the log."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import tiny_run
import yaml
from tiny_run import Listener, call, copy

from cpift.errors import CpiftError
from cpift.evaluation.guard import Guarded, read_guard, score_guard
from cpift.evaluation.neutral import text
from cpift.recipe.recipe import Recipe
from cpift.recipe.yaml import origins
from cpift.runs.model_card import _method, card, plain
from cpift.runs.pipeline import run
from cpift.runs.stage import Run


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with tiny_run.one_thread():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.finished_run(tmp_path_factory)


def test_the_card_is_what_the_hub_expects(whole: Path) -> None:
    """A metadata block of YAML with the results; data, intervals and limits in the text; no path of this machine."""
    written = (whole / "model/README.md").read_text()
    _, block, body = written.split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-generation"
    assert "base_model" not in metadata, "a local folder is no model of the hub"
    results = metadata["model-index"][0]["results"]
    scores = json.loads((whole / "scores.json").read_text())
    assert [r["dataset"]["name"] for r in results] == scores["tasks"]
    last = scores["models"]["refine/3"]
    assert [r["metrics"][0]["value"] for r in results] == pytest.approx(
        [last[t]["score"] for t in scores["tasks"]], abs=1e-6
    )
    for part in ("95 % interval", "## Limits", "one seed", "neutral text: ", "reverse.train.jsonl"):
        assert part in body, part
    assert "| reverse | reverse.train.jsonl | 16 | not stated |" in body
    assert str(whole.parent) not in written


def test_the_hub_reads_the_card(whole: Path, tmp_path: Path) -> None:
    """Its own library finds every result; licence and languages are those that the base's card states."""
    from huggingface_hub import ModelCard

    place = tmp_path / "work"
    shutil.copytree(whole.parent / "base", place / "base")
    stated = "---\nlicense: other\nlicense_name: odd\nlanguage:\n- en\n- de\nextra: 1\n---\n# Base\n"
    (place / "base/README.md").write_text(stated)
    recipe = Recipe.parse(tiny.recipe(place))
    recipe = recipe.changed({"tasks.upper.train": "owner/words", "tasks.upper.eval": "owner/words"})
    out = copy(whole, tmp_path / "whole")
    written = card(Run(recipe, out), json.loads((out / "scores.json").read_text()))
    data = ModelCard(written).data
    assert (data.license, data.license_name, data.language) == ("other", "odd", ["en", "de"])
    assert data.datasets == ["owner/words"]
    assert not hasattr(data, "extra")
    told = {r.dataset_name: r for r in data.eval_results}
    assert set(told) == {"reverse", "upper", "double"}
    assert (told["upper"].dataset_type, told["upper"].dataset_split) == ("owner/words", "test")
    assert (told["reverse"].metric_type, told["reverse"].metric_name) == ("exact_match", "exact match")
    assert "(other) is the base model's" in written
    unknown = (whole / "model/README.md").read_text()
    assert "license:" not in unknown.split("---\n")[1]
    assert "No licence is stated" in unknown


def test_what_is_no_markdown_stays_so() -> None:
    """A task's name cannot end a table's cell, nor begin markup."""
    assert plain("a|b <i> *c*\n# d & e") == "a\\|b &lt;i&gt; \\*c\\* \\# d &amp; e"


def test_every_model_is_scored_on_the_guard(whole: Path) -> None:
    """Kept apart from the tasks; the base's scores are those of the same sets again."""
    scores = json.loads((whole / "scores.json").read_text())
    guard = scores["guard"]
    assert guard["models"].keys() == scores["models"].keys()
    assert guard["against"] == "base"
    again = score_guard(whole.parent / "base", read_guard(Recipe.parse(tiny.recipe(whole.parent)).guard))
    assert guard["models"]["base"] == again
    assert len({entry["scores"]["neutral text"]["score"] for entry in guard["models"].values()}) > 1


def test_the_neutral_loss_of_an_untrained_model_is_that_of_guessing(whole: Path) -> None:
    """A random model knows nothing: about log of its vocabulary; every token of the text is predicted but the first of a window's."""
    found = score_guard(whole.parent / "base", [Guarded("neutral text", None)])["scores"]["neutral text"]
    assert found["score"] == pytest.approx(math.log(259), abs=0.3)
    assert sum(found["tokens"]) == len(text().encode().replace(b"\n", b"")) - len(found["items"])


def test_a_run_ends_with_its_report(whole: Path) -> None:
    """It is there, of the finished run, with the guard."""
    page = (whole / "report.html").read_text()
    assert '<span class="state finished">' in page
    assert '"guard":{' in page


def test_a_run_that_fails_logs_why_and_leaves_a_report(whole: Path, tmp_path: Path) -> None:
    """The event names the stage; the page says it; a run that then goes through says so instead."""
    recipe = Recipe.parse(tiny.recipe(whole.parent))
    out = copy(whole, tmp_path / "broken", ("06-refine", "07-evaluate", "07-guard"))

    class Breaks(Listener):
        def progress(self, done: float, total: float, detail: str = "") -> None:
            if self.made[-1] == "06-refine/2":
                raise CpiftError("something is wrong <here>")

    with pytest.raises(CpiftError):
        run(recipe, out, reporter=Breaks())
    event = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert (event["event"], event["stage"]) == ("error", "06-refine/2")
    assert re.fullmatch(r"06-refine/2 \(\w+\): something is wrong <here>", event["error"])
    told = (out / "report.html").read_text()
    assert re.search(r"failed in 06-refine/2 \(\w+\): something is wrong &lt;here&gt;", told), "the stage is named once"
    run(recipe, out)
    assert '<span class="state finished">' in (out / "report.html").read_text()


def test_a_report_that_cannot_be_made_does_not_fail_the_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a warning that says how to try again."""

    def broken(*_: object) -> Path:
        raise RuntimeError("no ink")

    monkeypatch.setattr("cpift.runs.pipeline.make_report", broken)
    listener = Listener()
    assert run(Recipe.parse(tiny.recipe(whole.parent)), copy(whole, tmp_path / "again"), reporter=listener)
    assert any("the report was not written (no ink); cpift report" in said for said in listener.said)


def test_where_each_value_came_from(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recipe, command line, default: from the file to the page."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**tiny.recipe(whole.parent), "backbone": "pretrained"}))
    found = origins(tmp_path / "r.yaml", {"fuse.space": "updates", "backbone": "multi_task"})
    assert found["model"] == "recipe"
    assert found["fuse.space"] == found["backbone.from"] == "command line"
    assert "seed" not in found
    assert (
        call(capsys, "run", tmp_path / "r.yaml", "--out", tmp_path / "out", "--until", "probe", "--set", "seed=0")[0]
        == 0
    )
    assert call(capsys, "report", tmp_path / "out")[0] == 0
    page = (tmp_path / "out/report.html").read_text()
    for key, value, source in (
        ("seed", "0", "command line"),
        ("backbone.from", "pretrained", "recipe"),
        ("fuse.space", "weights", "default"),
    ):
        assert f'<td>{key}</td><td class="text">{value}</td><td class="text">{source}</td>' in page


def test_the_plan_is_kept_for_the_report(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a plan alone can still be run in."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny.recipe(whole.parent)))
    assert call(capsys, "plan", tmp_path / "r.yaml", "--out", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out/plan.json").read_text())["tokens"] > 0
    assert call(capsys, "run", tmp_path / "r.yaml", "--out", tmp_path / "out", "--until", "probe")[0] == 0


def test_a_list_of_sets_is_on_the_card_without_paths(whole: Path, tmp_path: Path) -> None:
    """Each set by its id or its file's name, in the table, the metadata and the recipe; in the report, too."""
    from cpift.report.provenance import shown

    recipe = Recipe.load(whole / "recipe.yaml")
    data = recipe.model_dump(by_alias=True)
    file = data["tasks"]["reverse"]["train"]
    data["tasks"]["reverse"]["train"] = [{"path": file, "weight": 2.0}, {"path": "org/set"}]
    written = card(Run(Recipe.parse(data), whole), json.loads((whole / "scores.json").read_text()))
    assert "| reverse | reverse.train.jsonl, org/set | 16 |" in written
    assert yaml.safe_load(written.split("---\n")[1])["datasets"] == ["org/set"]
    assert str(Path(file).parent) not in written
    assert str(Path(file).parent) not in shown("tasks.reverse.train", data["tasks"]["reverse"]["train"])


def test_the_card_names_a_base_that_was_de_quantised(tmp_path: Path) -> None:
    recipe = Recipe.parse({**tiny.recipe(tmp_path), "model": str(tmp_path / "small.gguf")})
    assert "Fine-tuned from small.gguf, its weights de-quantised, on 3 tasks" in _method(
        Run(recipe, tmp_path / "out"), {"groups": []}
    )
