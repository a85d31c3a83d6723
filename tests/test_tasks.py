"""Rows in: checked, split, drawn by seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from cpift.data.rows import load_rows, metric_of, sample
from cpift.errors import CpiftError
from cpift.metrics.answers import answer_is_text
from cpift.recipe.task import Task

GOOD = tiny.rows("reverse", 1, 0)[0]


def load(path: Path, **more: Any) -> tuple[list, list, list[str]]:
    return load_rows("t", Task(train=str(path), **{"eval": str(path), **more}), 0)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([GOOD, "{nope"], "line 2: not JSON"),
        (["[1]"], "line 1: a row is an object"),
        ([{"title": "x"}], "line 1: has neither messages nor prompt and completion, but title"),
        ([{"messages": []}], "line 1: has no assistant turn"),
        ([{"messages": [{"role": "user", "content": "x"}]}], "line 1: has no assistant turn"),
        ([{"messages": [{"role": "assistant", "content": "  "}]}], "line 1: has no assistant turn"),
        ([{"messages": "x"}], "line 1: messages must be a list"),
        ([{"messages": [{"role": "user", "content": 3}]}], "line 1: messages must be a list"),
        ([{"prompt": "x", "completion": " "}], "line 1: the completion is empty"),
        (
            [{"prompt": "x", "completion": [{"role": "assistant", "content": "y"}]}],
            "line 1: prompt and completion must both",
        ),
        ([{"prompt": GOOD["messages"][:1], "completion": []}], "line 1: has no assistant turn"),
        ([{"prompt": "x"}], "line 1: has neither messages nor prompt and completion"),
        ([GOOD, "", "[" * 100_000], "line 3: not JSON"),
        ([], "holds no rows"),
        (["", "  "], "holds no rows"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, lines: list[Any], words: str) -> None:
    """Before anything is trained."""
    file = tiny.jsonl(tmp_path / "data.jsonl", lines)
    with pytest.raises(CpiftError, match=words) as caught:
        load(file)
    assert "data.jsonl" in str(caught.value)


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    """Latin-1 is no UTF-8."""
    (tmp_path / "data.jsonl").write_bytes('{"prompt": "ä", "completion": "b"}'.encode("latin-1"))
    with pytest.raises(CpiftError, match=r"data\.jsonl: not UTF-8"):
        load(tmp_path / "data.jsonl")


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    r"""JSON may hold \ud800, which no UTF-8 file can."""
    line = '{"prompt": "a", "completion": "\\ud800"}'
    with pytest.raises(CpiftError, match=r"data\.jsonl, line 1"):
        load(tiny.jsonl(tmp_path / "data.jsonl", [line]))


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """With the folder that paths count from."""
    with pytest.raises(CpiftError, match=f"{name} is missing; paths count from"):
        load(tmp_path / name)


def test_other_files_and_forms_of_rows(tmp_path: Path) -> None:
    """Parquet and JSON; prompt and completion in text and in messages."""
    import datasets

    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    (tmp_path / "d.json").write_text(json.dumps(rows))
    for name in ("d.parquet", "d.json"):
        assert load(tmp_path / name)[0] == rows
    (tmp_path / "bad.json").write_text("{nope")
    (tmp_path / "bad.parquet").write_text("{nope")
    (tmp_path / "row.json").write_text(json.dumps([*rows, {"prompt": "e", "completion": None}]))
    for name, words in (("bad.json", "bad.json"), ("bad.parquet", "bad.parquet"), ("row.json", "row.json, row 2")):
        with pytest.raises(CpiftError, match=words):
            load(tmp_path / name)
    pair = {"prompt": GOOD["messages"][:1], "completion": GOOD["messages"][1:]}
    assert load(tiny.jsonl(tmp_path / "p.jsonl", [pair]))[0] == [pair]


def test_a_single_file_is_split_by_seed(tmp_path: Path) -> None:
    """Disjoint, complete, the same for the same seed, and no prefix."""
    rows = [{"prompt": str(i), "completion": "x"} for i in range(50)]
    file = tiny.jsonl(tmp_path / "d.jsonl", rows)
    train, evaluation, _ = load(file, eval=10)
    assert (len(train), len(evaluation)) == (40, 10)
    assert sorted(int(r["prompt"]) for r in [*train, *evaluation]) == list(range(50))
    assert (train, evaluation) == load(file, eval=10)[:2]
    assert evaluation not in (rows[:10], rows[-10:])
    assert evaluation != load_rows("t", Task(train=str(file), eval=10), 1)[1]
    assert evaluation != load_rows("other", Task(train=str(file), eval=10), 0)[1]
    with pytest.raises(CpiftError, match="has only 50 rows"):
        load(file, eval=50)


def test_evaluation_rows_that_stand_in_the_training_rows_are_counted(tmp_path: Path) -> None:
    """And warned of; metadata does not hide them."""
    train = tiny.jsonl(tmp_path / "train.jsonl", tiny.rows("reverse", 9, 0))
    leaked = [{**tiny.rows("reverse", 9, 0)[4], "id": 7}, *tiny.rows("upper", 3, 1)]
    _, _, warnings = load(train, eval=str(tiny.jsonl(tmp_path / "eval.jsonl", leaked)))
    assert len(warnings) == 1
    assert "1 of 4 evaluation rows also stand in the training rows" in warnings[0].text


def test_a_sample_is_drawn_by_seed() -> None:
    """Not the first rows; the same for the same seed; all where there are fewer."""
    rows = [{"n": i} for i in range(100)]
    drawn = sample(rows, 10, 0, "t")
    assert len(drawn) == 10
    assert drawn != rows[:10]
    assert drawn == sample(rows, 10, 0, "t")
    assert drawn != sample(rows, 10, 1, "t")
    assert sample(rows[:5], 10, 0, "t") == rows[:5]
    assert drawn != sample(rows, 10, 0, "another task")


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_later_samples_repeat_no_row_before_all_were_drawn(total: int, count: int, seed: int) -> None:
    """As the dealing of a pack of cards; then the pack is dealt anew."""
    rows: list[dict[str, Any]] = [{"n": n} for n in range(total)]
    whole, draws = total // count, [sample(rows, count, seed, "t", draw) for draw in range(1, total // count + 2)]
    assert draws[0] == sample(rows, count, seed, "t")
    assert all(len(d) == min(count, total) and d == sorted(d, key=lambda r: r["n"]) for d in draws)
    seen = [row["n"] for d in draws[:whole] for row in d]
    assert len(seen) == len(set(seen))


def test_fewer_rows_by_train_rows(tmp_path: Path) -> None:
    """Drawn by seed from the training rows; where there are fewer, all, and it is said."""
    file = tiny.jsonl(tmp_path / "d.jsonl", [{"prompt": str(i), "completion": "x"} for i in range(30)])
    train, evaluation, warnings = load(file, eval=10, train_rows=5)
    assert (len(train), len(evaluation), warnings) == (5, 10, [])
    everything = load(file, eval=10)
    assert evaluation == everything[1]
    assert all(row in everything[0] for row in train)
    assert train not in (everything[0][:5], everything[0][-5:])
    train, _, warnings = load(file, eval=10, train_rows=99)
    assert len(train) == 20
    assert "train_rows is 99, there are only 20" in warnings[0].text


def test_another_task_leaves_the_rows_as_they_are(tmp_path: Path) -> None:
    """Each task has a stream of its own: loaded first, last or alone, it has the same rows."""
    file = tiny.jsonl(tmp_path / "d.jsonl", [{"prompt": str(i), "completion": "x"} for i in range(30)])
    tasks = {
        "split": Task(train=str(file), eval=10),
        "drawn": Task(train=str(file), eval=5, train_rows=7),
        "made": Task(generate="letter_counting", train=9, eval=4),
    }
    alone = {name: load_rows(name, task, 0) for name, task in tasks.items()}
    after = {name: load_rows(name, tasks[name], 0) for name in reversed(tasks)}
    assert alone == after


def test_generated_tasks(tmp_path: Path) -> None:
    """Reproducible, training and evaluation rows disjoint, another seed gives others."""
    task = Task(generate="letter_counting", train=60, eval=30)
    train, evaluation, warnings = load_rows("t", task, 0)
    assert (len(train), len(evaluation), warnings) == (60, 30, [])
    questions = [{r["messages"][0]["content"] for r in part} for part in (train, evaluation)]
    assert not questions[0] & questions[1]
    assert load_rows("t", task, 0) == (train, evaluation, [])
    assert load_rows("t", task, 1)[0] != train
    assert all(answer_is_text(r) for r in train)
    with pytest.raises(CpiftError, match="did you mean 'letter_counting'"):
        load_rows("t", Task(generate="leter_counting", train=1, eval=1), 0)
    with pytest.raises(CpiftError, match="reasoning_gym refuses"):
        load_rows("t", Task(generate="letter_counting", train=1, eval=1, config={"nope": 1}), 0)


def test_the_metric_fits_the_rows() -> None:
    """Exact match where there are answers, else loss; a pattern where the answer is part of the text."""
    wordy = {**GOOD, "answer": "other"}
    assert metric_of("t", Task(train="x", eval="y"), [GOOD]) == "exact_match"
    assert metric_of("t", Task(train="x", eval="y"), [{"messages": GOOD["messages"]}]) == "loss"
    assert metric_of("t", Task(train="x", eval="y", pattern="#"), [wordy]) == "exact_match"
    with pytest.raises(CpiftError, match="add a pattern"):
        metric_of("t", Task(train="x", eval="y"), [wordy])
    with pytest.raises(CpiftError, match="the assistant's turn last"):
        metric_of("t", Task(train="x", eval="y"), [{**GOOD, "messages": [*GOOD["messages"], GOOD["messages"][0]]}])
    with pytest.raises(CpiftError, match="needs an answer"):
        metric_of("t", Task(train="x", eval="y", metric="exact_match"), [{"messages": GOOD["messages"]}])
