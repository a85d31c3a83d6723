"""What ``cpift add`` is given: damaged, of another model, or in the wrong place; and what it reports of the rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiny_add import arrivals, models
from tiny_run import Listener, call, one_thread
from transformers import AutoModelForCausalLM

from cpift.errors import CpiftError
from cpift.files.lock import alone
from cpift.method import patch
from cpift.method.region import Region
from cpift.recipe.recipe import Recipe
from cpift.runs import arrival_outcome
from cpift.runs.arrival_findings import seen_often
from cpift.runs.make import make
from cpift.runs.pipeline import run
from cpift.runs.stage import Run
from cpift.runs.stages.arrivals import arrival_stages
from cpift.runs.stages.graph import first_stages
from cpift.train.spec import TrainSpec


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models(tmp_path_factory.mktemp("add-inputs"))
    tiny.jsonl(folder / "upper.jsonl", tiny.rows("upper", 12, 0))
    return folder


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def larger_vocabulary(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 16, mean_resizing=False)
    model.save_pretrained(base)


def two_tokens_exchanged(base: Path) -> None:
    content = json.loads((base / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (base / "tokenizer.json").write_text(json.dumps(content))


def carry(name: str, position: int) -> Callable[[Path], None]:
    """A region file of one position, without shapes."""

    def change(model: Path) -> None:
        (model / "cpift_regions").mkdir()
        Region({name: np.array([position], np.int32)}, 1000).save(model / "cpift_regions/x.region.safetensors")

    return change


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("mine", lambda folder: cut_short(folder / "model.safetensors"), "model.safetensors: truncated"),
    ("mine", lambda folder: (folder / "tokenizer.json").write_text("{"), "mine/tokenizer.json: cannot be read as JSON"),
    ("mine", carry("other.weight", 0), "is of another model (this one has no other.weight)"),
    ("mine", carry("model.norm.weight", 32), "has a position 32 there, 32 elements here"),
    ("base", lambda folder: cut_short(folder / "model.safetensors"), "model.safetensors: truncated"),
    ("base", larger_vocabulary, "vocab_size is 259, the base has 275; its weights mean something else there"),
    ("base", two_tokens_exchanged, "its tokenizer gives tokens other ids than the base's does"),
]


@pytest.mark.parametrize(("folder", "damage", "message"), DAMAGE)
def test_a_damaged_or_strange_checkpoint_is_one_line_and_nothing_is_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, damage: Any, message: str
) -> None:
    for name in ("base", "mine"):
        shutil.copytree(place / name, tmp_path / name)
    damage(tmp_path / folder)
    given = ["--model", tmp_path / "mine", "--base", tmp_path / "base", "--task", f"upper={place / 'upper.jsonl'}"]
    code, _, err = call(capsys, "add", *given, "--out", tmp_path / "out")
    lines = [line for line in err.splitlines() if line.startswith("cpift: ")]
    assert (code, len(lines), err.splitlines()[-1:]) == (2, 1, lines)
    assert message in lines[0]
    assert "--vocabulary" not in lines[0]  # an option of fuse
    assert not (tmp_path / "out").exists()


def test_an_update_without_its_origin_is_refused(place: Path, tmp_path: Path) -> None:
    data = {**arrivals(place, ["upper"], []), "protect": {"by": "update"}, "base": None}
    with pytest.raises(CpiftError, match="needs base"):
        run(Recipe.parse(data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


PLACES: list[tuple[str, list[str], str]] = [
    ("{place}/mine/out", [], "lies within the model's own folder"),
    ("{place}/mine", [], "is not empty and holds no run"),
    ("{tmp}/full", [], "is not empty and holds no run"),
    ("{tmp}/locked", [], "another cpift is at work in this folder"),
    ("{tmp}/out", ["--keep", "old={place}/upper.jsonl"], "holds the rows of the new task upper"),
    (
        "{tmp}/out",
        ["--keep", "old={tmp}/shape.jsonl"],
        "columns: of the task gives these columns other names (cpift add: --set",
    ),
    ("{tmp}/out", ["--keep", "old={tmp}/empty.jsonl"], "holds no rows"),
    ("{tmp}/out", ["--task", "upper={place}/upper.jsonl"], "the name upper is given twice"),
    ("{tmp}/out", ["--mirror", "nowhere://x"], "--mirror nowhere://x: "),
    ("{tmp}/out", ["--base", "org/none"], "base: org/none is no local folder and cannot be fetched"),
]


@pytest.mark.parametrize(("out", "options", "message"), PLACES)
def test_a_wrong_place_or_option_is_one_line_and_nothing_is_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, options: list[str], message: str
) -> None:
    names = {"place": place, "tmp": tmp_path}
    tiny.jsonl(tmp_path / "shape.jsonl", [{"foo": 1}] * 12)
    tiny.jsonl(tmp_path / "empty.jsonl", [])
    tiny.jsonl(tmp_path / "full/x", ["x"])
    before = sorted(place.rglob("*"))
    given = ["--model", place / "mine", "--task", f"upper={place / 'upper.jsonl'}", "--out", out.format(**names)]
    with alone(tmp_path / "locked"):
        held = sorted(p for p in tmp_path.rglob("*") if p.name != ".lock")
        code, _, err = call(capsys, "add", *given, *(option.format(**names) for option in options))
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert message in err
    assert sorted(place.rglob("*")) == before
    assert sorted(p for p in tmp_path.rglob("*") if p.name != ".lock") == held


def test_columns_of_kept_rows_are_named_by_set(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before rows are counted to hold some out; a number of rows may be given so, too."""
    tiny.jsonl(tmp_path / "old.jsonl", [{"ask": f"a{i}", "reply": "b"} for i in range(15)])
    given = ["--model", place / "mine", "--task", f"upper={place / 'upper.jsonl'}", "--keep", tmp_path / "old.jsonl"]
    given += ["--set", "tasks.old.columns={question: ask, answer: reply}", "--out", tmp_path / "out"]
    for more, held_out in ([], 3), (["--set", "tasks.old.eval=5"], 5):
        file = tmp_path / f"{held_out}.yaml"
        assert call(capsys, "add", *given, *more, "--write-recipe", file)[0] == 0
        assert Recipe.load(file).tasks["old"].eval == held_out
    code, _, err = call(capsys, "add", *given, "--set", "tasks.old.colums={}", "--write-recipe", tmp_path / "no.yaml")
    assert (code, "did you mean 'columns'" in err) == (2, True)


def test_a_task_that_no_patch_can_be_named_by_is_refused_before_training(place: Path, tmp_path: Path) -> None:
    data = arrivals(place, ["upper"], [], arrivals={"train": "inside"})
    data |= {"tasks": {"u" * 150: data["tasks"]["upper"]}, "arrivals": {"order": ["u" * 150], "train": "inside"}}
    with pytest.raises(CpiftError, match="is no name of a patch"):
        run(Recipe.parse(data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_patch_is_written_again_only_where_its_inputs_or_itself_changed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = arrivals(place, ["upper"], [], arrivals={"train": "inside"}, region={"percent": 30.0})
    made: list[Path] = []

    def counted(base: Path, tuned: Path, out: Path, **options: Any) -> patch.PatchReport:
        made.append(tuned)
        return patch.make_patch(base, tuned, out, **options)

    monkeypatch.setattr(arrival_outcome, "make_patch", counted)
    out, file = tmp_path / "out", tmp_path / "out/upper.patch.safetensors"
    with one_thread():
        run(Recipe.parse(data), out)
        first = file.read_bytes()  # of more than a quarter of the model: what make refuses without --max-share
        run(Recipe.parse(data), out)
        assert len(made) == 1
        cut_short(file)
        run(Recipe.parse(data), out)
        assert (len(made), file.read_bytes()) == (2, first)
        data["output"] = {"keep": "final"}
        run(Recipe.parse(data), out)
        file.unlink()
        run(Recipe.parse(data), out)  # the stage's weights are gone, the model's are not
        assert (made[2:], file.read_bytes()) == ([out / "model"], first)
        file.with_name(".patch.json").write_text("{}")  # of another stage
        run(Recipe.parse(data), out)
        assert (len(made), file.read_bytes()) == (4, first)


def test_kept_rows_that_are_seen_often_are_a_finding(place: Path) -> None:
    spec = TrainSpec({"per_device_train_batch_size": 4}, 12, 0, ("upper",), replay={"old": 3}, replay_share=0.5)
    (found,) = seen_often(spec, new=12, kept=3, repeated=12)  # 48 rows are two passes over 24: each kept one 8 times
    assert found.code == "kept-rows-repeated"
    assert found.text == "each of the 3 kept rows (old) is seen 8 times, to be 50% of the training rows"
    assert not seen_often(spec, new=12, kept=12, repeated=12)


def test_a_run_reports_repeated_rows_and_rows_that_another_task_is_scored_on(place: Path, tmp_path: Path) -> None:
    data = arrivals(place, ["upper"], ["reverse"])
    few, again = tiny.rows("reverse", 2, 0), tiny.rows("upper", 4, 1)  # the evaluation rows of upper
    data["tasks"]["reverse"]["train"] = str(tiny.jsonl(tmp_path / "few.jsonl", [*few, again[0]]))
    current = Run(Recipe.parse(data), tmp_path / "out", Listener())
    for stage in first_stages(current):
        make(current, [stage])
    protect, train, *_ = arrival_stages(current)
    with one_thread():
        for stage in (protect, train):
            make(current, [stage])
    texts = [finding["text"] for finding in current.facts(train.name)["findings"]]
    assert "each of the 3 kept rows (reverse) is seen 4 times, to be 50% of the training rows" in texts
    assert any("task upper: 1 of 4 evaluation rows also stand in the training rows of reverse" in t for t in texts)
