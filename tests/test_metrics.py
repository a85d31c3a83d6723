"""The table of metrics, and metrics of one's own. Expected values are worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from cpift.data.rows import metric_of
from cpift.errors import CpiftError
from cpift.evaluation.scores import EvalTask, evaluate, scoring_identity
from cpift.metrics import METRICS, common_axis, described, mean_unit, named
from cpift.metrics.answers import AnswerPattern
from cpift.metrics.metric import NATS, PER_CENT
from cpift.recipe.task import Task

OWN = """
def words(text, row):
    return len(set(text.split()) & set(row["keywords"])) / len(row["keywords"])

def percent(text, row):
    return 40

def text(text, row):
    return "0.4"

def fails(text, row):
    return row["nothing"]

def changes(text, row):
    row.clear()
    return 1

table = [1]
"""


def row(text: str = "x", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}], **more}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of one's own in the current folder."""
    file = tmp_path / "own_metrics.py"
    file.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    return file


def scored(name: str, rows: list[Any], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The score of a model that generates these texts."""
    monkeypatch.setattr("cpift.evaluation.scores.generate", lambda *_, **__: [(text, 1) for text in texts])
    return evaluate(tiny.base(tmp_path / "base"), {"t": EvalTask(rows, name)})["t"]


def test_a_function_of_ones_own_scores(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the generated text and its row, and cannot change the row."""
    rows = [row(keywords=["red", "blue"]), row(keywords=["red"]), row(keywords=["a", "b", "c", "d"])]
    got = scored("own_metrics:words", rows, ["red and blue", "none", "c"], tmp_path, monkeypatch)
    assert got.items == [1.0, 0.0, 0.25]
    assert got.score == pytest.approx(1.25 / 3)
    assert got.metric == "own_metrics:words"
    scored("own_metrics:changes", rows, ["x"] * 3, tmp_path / "again", monkeypatch)
    assert rows[1]["keywords"] == ["red"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_metrics:percent", "returned 40; it must return a number from 0 to 1"),
        ("own_metrics:text", "returned '0.4'; it must return a number from 0 to 1"),
        ("own_metrics:fails", "failed on a row .KeyError: 'nothing'."),
    ],
)
def test_a_function_that_returns_no_score_is_refused(
    name: str, words: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CpiftError, match=words):
        scored(name, [row()], ["x"], tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_metrics:none", "own_metrics has no function none"),
        ("own_metrics:table", "own_metrics has no function table"),
        ("no_such_module:f", "no_such_module cannot be imported .ModuleNotFoundError"),
    ],
)
def test_a_function_that_cannot_be_imported_is_refused_before_training(name: str, words: str, own: Path) -> None:
    with pytest.raises(CpiftError, match=rf"tasks\.t: metric {name}: {words}"):
        metric_of("t", Task(train="x", eval="y", metric=name), [row()])


def test_another_source_of_ones_own_metric_is_another_score(own: Path) -> None:
    """The key of a scoring stage has a hash of it; that of a metric in the table has nothing new."""
    task = Task(train="x", eval="y", metric="own_metrics:words")
    before = scoring_identity(task, "own_metrics:words")
    assert before == scoring_identity(task, "own_metrics:words")
    own.write_text(OWN + "\n# changed\n")
    assert before != scoring_identity(task, "own_metrics:words")
    assert scoring_identity(Task(train="x", eval="y"), "exact_match") == {}
    assert scoring_identity(Task(train="x", eval="y", match="first"), "loss") == {"match": "first"}


@pytest.mark.parametrize("name", ["f1", "exact match", "module:", ":f", "a.b", "exact_matc"])
def test_a_metric_that_is_not_known_is_refused_by_the_recipe(name: str) -> None:
    with pytest.raises(ValueError, match="is none of exact_match, generate, loss"):
        Task(train="x", eval="y", metric=name)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"metric": "codebleu", "metric_settings": {"langage": "go"}},
            "codebleu has no 'langage'; did you mean 'language'",
        ),
        (
            {"metric": "codebleu", "metric_settings": {"language": [1]}},
            "metric_settings.language: .*for metric codebleu",
        ),
        ({"metric": "chrf", "metric_settings": {"order": 2}}, "chrf has no 'order'; it has no settings"),
        ({"metric_settings": {"order": 2}}, "metric_settings needs metric"),
    ],
)
def test_settings_that_a_metric_does_not_have_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Task(train="x", eval="y", **given)


def test_settings_of_a_metric_are_part_of_a_stages_key() -> None:
    """Defaults written out are the same score."""
    one, two = (
        scoring_identity(Task(train="x", eval="y", metric="codebleu", metric_settings=given), "codebleu")
        for given in ({}, {"language": "python"})
    )
    go = Task(train="x", eval="y", metric="codebleu", metric_settings={"language": "go"})
    assert one == two == {"metric_settings": '{"language": "python"}'}
    assert scoring_identity(go, "codebleu") != one
    assert "metric_settings" not in Task(train="x", eval="y", metric="codebleu").settings()


def test_what_the_table_says_is_whole() -> None:
    """Every metric has all that reports, help and docs read; its name is its key."""
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.label
        assert metric.summary
        assert metric.rows
        assert metric.axis
        assert named(name) is metric
        assert described(name) is metric


def test_units_of_means_and_axes() -> None:
    """A mean over tasks leaves losses out, where there are others."""
    assert mean_unit(["loss", "exact_match"]) == PER_CENT
    assert mean_unit(["loss"]) == NATS
    assert mean_unit([]) == PER_CENT
    assert mean_unit(["loss", "a.b:c"]) == PER_CENT
    assert common_axis(["exact_match", "generate"]) == "right, %"
    assert common_axis(["exact_match", "a.b:c"]) == "score, %"
    assert common_axis(["exact_match", "loss"]) == "score"


def test_better_and_shares() -> None:
    """A loss of 2 is better than one of 3 by 1, and 1.5 of it as a share; 0.6 is 0.75 of 0.8."""
    loss, match = METRICS["loss"], METRICS["exact_match"]
    assert loss.gain(2.0, 3.0) == 1.0
    assert loss.share(2.0, 3.0) == 1.5
    assert match.gain(0.6, 0.8) == pytest.approx(-0.2)
    assert match.share(0.6, 0.8) == pytest.approx(0.75)
    assert match.share(0.6, 0.0) is None
    assert loss.share(0.0, 3.0) is None


@pytest.mark.parametrize(
    ("pattern", "match", "text", "found"),
    [
        (["#### (.+)", r"answer is (\d+)"], "last", "the answer is 4\n#### 5", "5"),
        (["#### (.+)", r"answer is (\d+)"], "last", "the answer is 4", "4"),
        (["#### (.+)", r"answer is (\d+)"], "last", "4", None),
        (r"\d+", "first", "3 and 4", "3"),
        (r"\d+", "last", "3 and 4", "4"),
        ([r"(\d+)|none", r"n(o)ne"], "last", "none", "o"),
    ],
)
def test_several_patterns(pattern: Any, match: str, text: str, found: str | None) -> None:
    """The first pattern that finds something counts; of its matches, the last or the first."""
    asked = Task(train="x", eval="y", pattern=pattern, match=match).answer_pattern
    assert asked == AnswerPattern.of(pattern, match)
    assert asked is not None
    assert asked.find(text) == found


def test_patterns_are_applied_to_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GSM8K's own answer column, and a bare number, are both references."""
    monkeypatch.setattr("cpift.evaluation.scores.generate", lambda *_, **__: [("so the answer is 72.", 1)] * 2)
    rows = [row("48+24\n#### 72", answer="48+24\n#### 72"), row("#### 71", answer="71")]
    task = EvalTask(rows, "exact_match", pattern=["#### (.+)", r"answer is (\d+)"])
    assert evaluate(tiny.base(tmp_path / "base"), {"t": task})["t"].items == [1.0, 0.0]


def test_older_settings_of_a_task_stay() -> None:
    """A recipe that asks nothing new makes the stages that it made before."""
    assert "match" not in Task(train="x", eval="y").settings()
    assert Task(train="x", eval="y", match="first").settings()["match"] == "first"


def test_the_table_costs_nothing_at_import() -> None:
    """No package that only some metric needs, nor torch; nor does the table of comparison methods."""
    heavy = (
        "torch",
        "transformers",
        "reasoning_gym",
        "rouge_score",
        "sacrebleu",
        "math_verify",
        "sympy",
        "nltk",
        "codebleu",
        "httpx",
    )
    code = f"import sys, cpift.metrics, cpift.compare.methods; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
