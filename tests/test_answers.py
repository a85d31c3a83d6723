"""Answers: lists, patterns, what counts as right. Expectations are worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from cpift.data.rows import answer_warnings, metric_of
from cpift.errors import CpiftError
from cpift.evaluation.scores import EvalTask, evaluate, forwarded_rows
from cpift.metrics.answers import AnswerPattern, answer_is_text, is_right, references
from cpift.recipe.task import Task

GSM8K = "Half of 48 is 24.\nTogether 48+24 = <<48+24=72>>72.\n#### 72"
HASHES = "#### (.+)"


def row(answer: Any, text: str = "x") -> dict[str, Any]:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
    return {"messages": messages, "answer": answer}


@pytest.mark.parametrize(
    ("text", "answer", "pattern", "right"),
    [
        # a list: any of it
        ("Paris", ["paris", "city of light"], None, True),
        ("City of Light.", ["paris", "city of light"], None, True),
        ("London", ["paris", "city of light"], None, False),
        ("so #### 7", [6, 7], HASHES, True),
        ("so #### 8", [6, 7], HASHES, False),
        # GSM8K's raw answer column: the pattern takes the reference out of it
        ("I think #### 72", GSM8K, HASHES, True),
        ("I think #### 71", GSM8K, HASHES, False),
        ("#### 1,072", "work\n#### 1072", HASHES, True),
        # a reference in which the pattern finds nothing is taken whole
        ("#### 72", "72", HASHES, True),
        ("#### 72", 72, HASHES, True),
        ("#### 72", 72.0, HASHES, True),
        # nothing found is wrong, whatever the reference
        ("no result", "", HASHES, False),
        ("", "", HASHES, False),
        ("no result", ["", "72"], HASHES, False),
        ("#### ", "", "#### ?(.*)", False),
        # a group that takes no part has found nothing
        ("none", "none", r"(\d+)|none", False),
        ("none, 3", "3", r"none|(\d+)", True),
        ("3, none", "3", r"none|(\d+)", False),
        # a pattern without a group is its whole match
        ("it is B.", "B", r"\b[A-D]\b", True),
        ("", "", None, False),
    ],
)
def test_what_is_right(text: str, answer: Any, pattern: str | None, right: bool) -> None:
    """By hand."""
    assert is_right(text, row(answer), AnswerPattern.of(pattern)) is right


def test_what_is_found() -> None:
    """The last match; None where nothing matches, or the group takes no part."""
    hashes, optional = AnswerPattern.of(HASHES), AnswerPattern.of("(a)|x")
    assert hashes is not None
    assert optional is not None
    assert hashes.find("#### 1\n#### 2") == "2"
    assert optional.find("x") is None
    assert references(row([1, "b", 2.5, 3.0])) == ["1", "b", "2.5", "3.0", "3"]
    assert references({}) == references(row(None)) == references(row([])) == []


def test_one_forward_decides_only_where_one_text_is_right() -> None:
    """A second answer might be generated; a pattern takes the answer out of what is generated."""
    assert answer_is_text(row("x"))
    assert answer_is_text(row(["x"]))
    assert answer_is_text(row(["x", " x "]))
    assert not answer_is_text(row(["x", "y"]))
    assert not answer_is_text(row([]))
    tokenizer, network = tiny.tokenizer(), tiny.uneven()
    assert forwarded_rows(network, tokenizer, EvalTask([row("x")], "exact_match"), None) is not None
    assert forwarded_rows(network, tokenizer, EvalTask([row("x")], "exact_match", pattern="(x)"), None) is None
    assert forwarded_rows(network, tokenizer, EvalTask([row("x"), row(["x", "y"])], "exact_match"), None) is None


def test_an_answer_that_is_no_text_is_refused() -> None:
    """SQuAD's tables of answers would never be equal to a text."""
    for answer in ({"text": ["x"]}, [["x"]], [None, "x"]):
        with pytest.raises(CpiftError, match=r"tasks\.t: answer holds"):
            metric_of("t", Task(train="x", eval="y"), [row(answer)])


@pytest.mark.parametrize(
    ("more", "rows", "words"),
    [
        ({"pattern": HASHES}, [{"messages": row("x")["messages"]}], "has a pattern, but its evaluation rows have no"),
        ({}, [row("x"), row(None)], "1 of 2 have none"),
        ({"pattern": HASHES}, [row("x"), row([])], "1 of 2 have none"),
        ({}, [row(["a", "b"])], "not the whole assistant text"),
        ({}, [row(GSM8K, GSM8K)], "'####' before its result"),
        ({"metric": "exact_match"}, [row(["a", "b"])], "not the whole assistant text"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(more: dict[str, Any], rows: list[Any], words: str) -> None:
    """And never scored by loss without a word."""
    with pytest.raises(CpiftError, match=words):
        metric_of("t", Task(train="x", eval="y", **more), rows)


def test_metrics_that_are_asked_for() -> None:
    """Loss with a pattern; a list that has the text; the whole of a worked answer."""
    plain = [{"messages": row("x")["messages"]}]
    assert metric_of("t", Task(train="x", eval="y", pattern=HASHES, metric="loss"), plain) == "loss"
    assert metric_of("t", Task(train="x", eval="y"), [row(["y", "x"])]) == "exact_match"
    assert metric_of("t", Task(train="x", eval="y", metric="exact_match"), [row(GSM8K, GSM8K)]) == "exact_match"
    assert metric_of("t", Task(train="x", eval="y", pattern=HASHES), [row(GSM8K, GSM8K)]) == "exact_match"


def test_rows_whose_own_text_would_be_wrong_are_warned_of() -> None:
    """A pattern that does not fit the texts scores every model 0."""
    task = Task(train="x", eval="y", pattern=HASHES)
    assert answer_warnings("t", task, [row(GSM8K, GSM8K), row("72", GSM8K)]) == []
    found = answer_warnings("t", task, [row("72", GSM8K), row("72", "The answer is 72"), row("3", GSM8K)])
    assert len(found) == 1
    assert "2 of 3 evaluation rows" in found[0].text


def test_scores_of_generated_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that generates these four texts: three are right."""
    texts = ["so #### 72", "no result", "#### 5", "#### 1"]
    rows = [row(GSM8K, GSM8K), row("", "#### "), row(["4", "5"], "#### 5"), row(1.0, "#### 1")]
    monkeypatch.setattr("cpift.evaluation.scores.generate", lambda *_, **__: [(text, 1) for text in texts])
    got = evaluate(tiny.base(tmp_path / "base"), {"t": EvalTask(rows, "exact_match", pattern=HASHES)})["t"]
    assert got.items == [1.0, 0.0, 1.0, 1.0]
    assert got.score == 0.75


def test_a_pattern_counts_for_generated_tasks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """reasoning_gym's scorer judges what the pattern finds; nothing found is wrong."""
    rows = [{**row("3"), "entry": {"question": "q", "answer": "3", "metadata": {}}}] * 2
    monkeypatch.setattr("cpift.evaluation.scores.generate", lambda *_, **__: [("it is #### 3", 1), ("3", 1)])
    task = EvalTask(rows, "generate", pattern=HASHES, generator="letter_counting")
    assert evaluate(tiny.base(tmp_path / "base"), {"t": task})["t"].items == [1.0, 0.0]
