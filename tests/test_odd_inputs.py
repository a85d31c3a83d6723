"""Inputs like those that users report, a table of them: the right value, or a refusal. Expected values are by hand."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from cpift.data.encoding import IGNORED, encode, encode_forced, forced_rows
from cpift.data.rows import answer_warnings, load_task, metric_of
from cpift.errors import CpiftError
from cpift.metrics.answers import AnswerPattern, is_right
from cpift.recipe.task import Task
from cpift.train.limits import Limits, check_tokenizer

NFD = unicodedata.normalize("NFD", "café")


def asked(question: str, text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": text}], **more}


@pytest.mark.parametrize(
    ("text", "answer", "pattern", "right"),
    [
        ("so it is 42", "17", r"(\d*)", False),  # an expression that also matches nothing, at the end of every text
        ("so it is 42", "42", r"(\d*)", True),
        ("nothing at all", "42", r"(\d*)", False),
        ("", "42", r"(.*)", False),
        ("42", "42", r"(?:####)?\s*(.*)", True),
        ("a\n\n", "a", r"(.*)", True),
        ("answer: B", "B", r"[A-D]", True),  # no group
        ("answer: C", "B", r"[A-D]", False),
        ("#### 1,234", "1234", r"#### (.+)", True),
        ("#### 1,234", ["7", "1234"], r"#### (.+)", True),
        ("#### 12\u00a0", "12", r"#### (.+)", True),
        ("#### -5", "5", r"#### (.+)", False),
        ("café", NFD, None, True),  # some tokenizers compose accents
        (NFD, "café", None, True),
        ("cafe", "café", None, False),
        ("...", "", None, False),
        ("", "...", None, False),
        ("...", "...", None, True),
        ("Yes.", ["yes", "yeah"], None, True),
        ("no", ["yes", ""], None, False),
        ("", ["yes", ""], None, False),
    ],
)
def test_answers(text: str, answer: Any, pattern: str | None, right: bool) -> None:
    assert is_right(text, asked("q", "x", answer=answer), AnswerPattern.of(pattern)) is right


@pytest.mark.parametrize("end", [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "é "])
@pytest.mark.parametrize("answer", ["yes", "yes ", " yes", "yes\n", "né"])
def test_every_character_of_an_answer_is_learnt(end: str, answer: str) -> None:
    """Of plain text with a token a byte: the labels are the answer's bytes and the end, whatever the prompt ends in."""
    words = tiny.tokenizer()
    row = {"prompt": "Label:" + end, "completion": answer}
    labels = [label for label in encode(row, words).labels if label != IGNORED]
    assert labels == [*words(answer)["input_ids"], words.eos_token_id]
    forced = encode_forced(row, words, [words.eos_token_id])
    assert forced is not None
    assert [label for label in forced.labels if label != IGNORED] == labels


def test_an_answer_with_the_end_token_in_it_is_not_judged_by_its_beginning() -> None:
    """One forward would look at ``a`` alone; what is generated ends there, and is another text than the answer."""
    words = tiny.tokenizer()
    row = asked("q", "a<|im_end|>b", answer="a<|im_end|>b")
    assert forced_rows([row], None, words) is None
    assert forced_rows([asked("q", "ab", answer="ab")], None, words) is not None


def loaded(place: Path, train: list[Any], evaluation: list[Any], **more: Any) -> list[str]:
    """The warnings of a task with these rows, metric and answers checked."""
    files = {"train": tiny.jsonl(place / "t.jsonl", train), "eval": tiny.jsonl(place / "e.jsonl", evaluation)}
    task = Task(**{part: str(file) for part, file in files.items()}, **more)
    rows = load_task("t", task, 0)
    metric_of("t", task, rows.evaluation)
    return [found.text for found in (*rows.warnings, *answer_warnings("t", task, rows.evaluation))]


@pytest.mark.parametrize(
    "twin",
    [
        asked("q  ", "a"),
        asked("q", "a\n"),
        asked("q", "a", id=7),
        {"messages": [{"role": "user", "content": "q", "id": 3}, {"role": "assistant", "content": "a", "model": "x"}]},
        {"messages": [{"content": "q", "role": "user"}, {"content": "a", "role": "assistant", "weight": 1}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"question": "q", "answer": "a"},
    ],
)
def test_rows_of_training_among_the_evaluation_rows_are_counted(tmp_path: Path, twin: dict[str, Any]) -> None:
    """In another shape, with metadata, or with blanks around: the model reads the same."""
    warnings = loaded(tmp_path, [asked("q", "a"), asked("x", "y")], [twin, *[asked("o", "p")][: "answer" not in twin]])
    assert any("1 of " in text and "also stand in the training rows" in text for text in warnings), warnings


REFUSED: list[tuple[list[Any], dict[str, Any], str]] = [
    ([asked("q", "a", answer="")], {"pattern": "(.*)"}, "has a pattern, but its evaluation rows have no answer"),
    ([asked("q", "a", answer="a"), asked("q", "b", answer="")], {}, "1 of 2 have none"),
    ([asked("q", "a", answer=[])], {"metric": "generate"}, "1 of 1 have none"),
    ([asked("q", "so: a", answer="a")], {}, "the answers are not the whole assistant text"),
    ([asked("q", "a", answer=True)], {}, "not the whole assistant text"),
    ([asked("q", "a", answer={"x": 1})], {}, "answer holds dict"),
    ([{"prompt": "q", "completion": 1}], {}, "must both be text"),
    ([{"prompt": "q", "completion": " \u00a0\n"}], {}, "the completion is empty"),
    ([asked("q", "a")["messages"]], {}, "a row is an object"),
    ([{"data": [asked("q", "a")]}], {}, "has neither messages nor prompt"),
    ([{"messages": {"role": ["user"], "content": ["q"]}}], {}, "must be a list of objects"),
    (
        [{"messages": [{"role": "User", "content": "q"}, {"role": "Assistant", "content": "a"}]}],
        {},
        "no assistant turn",
    ),
    ([{"prompt": "q", "chosen": "a", "rejected": "b"}], {}, "preference set"),
]


@pytest.mark.parametrize(("rows", "more", "words"), REFUSED)
def test_rows_that_are_refused(tmp_path: Path, rows: list[Any], more: dict[str, Any], words: str) -> None:
    with pytest.raises(CpiftError, match=words):
        loaded(tmp_path, rows, rows, **more)


def test_answers_that_the_own_text_does_not_give_are_counted(tmp_path: Path) -> None:
    """With and without a pattern: a model that has learnt the rows scores 0 %."""
    rows = [asked("q", "it is 4, so 4 apples", answer="4"), asked("p", "4", answer="4")]
    for more in ({"metric": "generate"}, {"pattern": r"(\d+) pears|^(?:4)$"}):
        (text,) = (w for w in loaded(tmp_path, [asked("o", "y")], rows, **more) if "own text" in w)
        assert "in 1 of 2" in text or "in 2 of 2" in text


FILES: dict[str, Any] = {
    "bom.jsonl": b"\xef\xbb\xbf" + json.dumps(asked("q", "a")).encode() + b"\r\n\r\n",
    "bom.json": b"\xef\xbb\xbf" + json.dumps([asked("q", "a")], indent=1).encode(),
    "bom.csv": b"\xef\xbb\xbfquestion,answer\r\nq,a\r\n",
    "semicolon.csv": b"question;answer\nq;a\n",
    "mark.tsv": b"question\tanswer\nq\ta\n",
    "packed.jsonl.gz": gzip.compress(json.dumps(asked("q", "a")).encode()) + gzip.compress(b"\n"),
    "SHOUT.JSONL": json.dumps(asked("q", "a")).encode(),
    "separator.jsonl": json.dumps(asked("q", "a") | {"note": "x\u2028y\x85z"}, ensure_ascii=False).encode(),
}


@pytest.mark.parametrize("name", list(FILES))
def test_files_that_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    (row,) = load_task("t", Task(train=str(tmp_path / name), eval=str(tmp_path / name)), 0).train
    assert row["messages"] == asked("q", "a")["messages"]


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "wide.jsonl": (json.dumps(asked("q", "a")).encode("utf-16"), "not UTF-8"),
    "latin.csv": ("question,answer\nq,é\n".encode("latin-1"), "not UTF-8"),
    "short.jsonl.gz": (gzip.compress(json.dumps(asked("q", "a" * 999)).encode())[:-9], "cannot be read"),
    "quote.tsv": (b'question\tanswer\n"q\ta\np"\tb\n', "line 3: a cell in quotation marks goes over several lines"),
    "joined.jsonl": (json.dumps(asked("q", "a")).encode() * 2, "line 1: not JSON"),
    "middle.jsonl": (json.dumps(asked("q", "a")).encode() + b"\n\xef\xbb\xbf{}", "line 2: not JSON"),
    "empty.jsonl": (b"\n \n", "holds no rows"),
    "twice.csv": (b"question,question\nq,a\n", "a column stands twice"),
    "ragged.csv": (b"question,answer\nq,a,b\n", "line 2: has 3 cells"),
}


@pytest.mark.parametrize("name", list(BAD_FILES))
def test_files_that_are_refused(tmp_path: Path, name: str) -> None:
    content, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CpiftError, match=words):
        load_task("t", Task(train=str(tmp_path / name), eval=1), 0)


def test_columns_that_arrow_adds_are_no_null_in_a_tool(tmp_path: Path) -> None:
    """Two tools with parameters of their own, and two calls: Arrow gives all of them every key."""
    tools = [{"name": "a", "parameters": {"x": "int"}}, {"name": "b", "parameters": {"y": "int"}}]
    calls = [{"function": {"name": "a", "arguments": {"x": 1}}}, {"function": {"name": "b", "arguments": {"y": 2}}}]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    file = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "tools": tools}] * 2), file)
    rows = load_task("t", Task(train=str(file), eval=1), 0).train
    assert rows[0]["tools"] == tools
    assert rows[0]["messages"][1]["tool_calls"] == calls
    assert rows[0]["messages"][1]["content"] is None


def test_a_template_with_the_date_of_the_day_is_a_warning() -> None:
    """Llama 3's: what is trained today is asked tomorrow under another date."""
    words = tiny.tokenizer()
    assert check_tokenizer(words, Limits(300, None, False), {}) == []
    words.chat_template = "{% if date_string is not defined %}{{ strftime_now('%d') }}{% endif %}" + tiny.CHATML
    (warning,) = check_tokenizer(words, Limits(300, None, False), {})
    assert "writes the date of the day" in warning.text
    words.cpift_template_kwargs = {"date_string": "26 Jul 2024"}
    assert check_tokenizer(words, Limits(300, None, False), {}) == []
