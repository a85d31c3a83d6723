"""Sets of many rows: memory is bounded, and the rows are those that a list of all of them would give."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run

from cpift.data import encoded
from cpift.data.draws import exactly, indices
from cpift.data.encoding import Encoded, encode
from cpift.data.lengths import encode_measured
from cpift.data.rows import load_task, sample
from cpift.data.store import read_jsonl, write_jsonl
from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.recipe.task import Task
from cpift.runs.pipeline import run

MANY = 5_000


def rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"{i}", "completion": f"{i}"} for i in range(count)]


def test_memory_does_not_grow_with_the_rows_that_are_not_drawn(tmp_path: Path) -> None:
    """100 rows of 5,000: less than 200 bytes a row at the most, where a row as an object takes 500."""
    file = tmp_path / "many.jsonl"
    file.write_text("".join(f'{{"prompt": "{i}", "completion": "{i}"}}\n' for i in range(MANY)))
    load_task("t", Task(train=str(tiny.jsonl(tmp_path / "few.jsonl", rows(9))), eval=1), 0)  # imports
    tracemalloc.start()
    loaded = load_task("t", Task(train=str(file), eval=50, train_rows=50), 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(loaded.train), len(loaded.evaluation)) == (50, 50)
    assert peak < 200 * MANY, peak


def test_the_rows_are_those_of_a_list(tmp_path: Path) -> None:
    """Split, weights and sample drawn as from Python's lists, with the same streams of random numbers."""
    given, more = rows(40), [{"prompt": f"m{i}", "completion": "x"} for i in range(10)]
    a, b = tiny.jsonl(tmp_path / "a.jsonl", given), tiny.jsonl(tmp_path / "b.jsonl", more)
    sets: Any = [{"path": str(a)}, {"path": str(b), "weight": 1.5}]
    loaded = load_task("t", Task(train=sets, eval=8, train_rows=30), 3)
    every = given + more
    held = set(random.Random("3/t/split").sample(range(50), 8))
    assert list(loaded.evaluation) == [row for i, row in enumerate(every) if i in held]
    first = [row for i, row in enumerate(given) if i not in held]
    second = [row for i, row in enumerate(more, start=40) if i not in held]
    half = random.Random("3/t/weight 1").sample(range(len(second)), round(0.5 * len(second)))
    pool = first + second + [second[i] for i in sorted(half)]
    chosen = random.Random("3/t/sample").sample(list(range(len(pool))), 30)
    assert list(loaded.train) == [pool[i] for i in sorted(chosen)]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """As a sequence: by number, from the end, in parts."""
    given: list[Any] = [{"prompt": "ä\u2028\n", "completion": "b", "n": [1, 2.5, None]}, *rows(3)]
    write_jsonl(tmp_path / "a.jsonl", given)
    stored = read_jsonl(tmp_path / "a.jsonl")
    assert stored == given
    assert [stored[-1], stored[0]] == [given[-1], given[0]]
    assert list(stored[1:3]) == given[1:3]
    assert stored[:2] != given
    write_jsonl(tmp_path / "b.jsonl", stored[1:])
    assert [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().split("\n")[:-1]] == given[1:]
    assert list(sample(stored, 2, 0, "t")) == sample(given, 2, 0, "t")
    (tmp_path / "c.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(CpiftError, match=r"c.jsonl, line 2: has neither"):
        read_jsonl(tmp_path / "c.jsonl")
    write_jsonl(tmp_path / "d.jsonl", [])
    assert list(read_jsonl(tmp_path / "d.jsonl")) == []


def test_a_number_of_samples() -> None:
    """None twice where there are enough; else each at least once."""
    few = exactly(indices(range(10, 30)), 5, random.Random(0))
    assert len(set(few)) == 5
    assert list(few) == sorted(few)
    more = exactly(indices([7, 8, 9]), 8, random.Random(0))
    assert set(more) == {7, 8, 9}
    assert len(more) == 8


@pytest.mark.parametrize(("samples", "train", "evaluation"), [(4, 4, 4), (15, 15, 10)])
def test_num_samples_of_llama_factory(tmp_path: Path, samples: int, train: int, evaluation: int) -> None:
    """So many rows, drawn by seed; further ones repeat some, but no evaluation row is scored twice."""
    tiny.jsonl(tmp_path / "a.jsonl", [{"instruction": f"q{i}", "output": "a"} for i in range(10)])
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", "num_samples": samples}}))
    path = f"{tmp_path / 'dataset_info.json'}#a"
    loaded = load_task("t", Task(train=path, eval=path), 0)
    assert (len(loaded.train), len(loaded.evaluation)) == (train, evaluation)
    assert len({json.dumps(row) for row in loaded.evaluation}) == evaluation
    assert loaded == load_task("t", Task(train=path, eval=path), 0)
    assert loaded.sources[0].used == train
    split = load_task("t", Task(train=path, eval=3), 0)
    held = [json.dumps(row) for row in split.evaluation]
    assert not [row for row in split.train if json.dumps(row) in held]
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", "num_samples": "4"}}))
    with pytest.raises(CpiftError, match="num_samples is '4'; it is a number of rows"):
        load_task("t", Task(train=path, eval=3), 0)


@pytest.fixture
def encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that are encoded, as they are; nothing encoded before counts."""
    done: list[str] = []

    def counted(row: Any, tokenizer: Any) -> Encoded:
        done.append(json.dumps(row))
        return encode(row, tokenizer)

    monkeypatch.setattr(encoded, "encode", counted)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(encoded, "_temporary", lambda: tmp_path / "scratch")
    return done


def test_a_run_encodes_each_row_once(tmp_path: Path, encodings: list[str]) -> None:
    """For the check before it, the probe, the backbone and all scores; the drawn ones of a refine stage once more."""
    settings = tiny.recipe(tmp_path, ("reverse",))
    settings["tasks"]["reverse"]["metric"] = "loss"
    with tiny_run.one_thread():
        run(Recipe.parse(settings), tmp_path / "out")
    train, evaluation, refined = 16, 6, 4
    assert len(encodings) == train + evaluation + refined


def test_what_is_kept_is_keyed_by_content(
    tmp_path: Path, encodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other rows, another length, template, variable or end token: encoded anew. Large sets stay for later runs."""
    words, given = tiny.tokenizer(), tiny.rows("upper", 5, 0)
    first = [list(encoded.encode_rows(given, words, None)) for _ in range(2)]
    assert first[0] == first[1] == [encode(row, words) for row in given]
    assert len(encodings) == 5
    write_jsonl(tmp_path / "t.jsonl", given)
    encoded.encode_rows(read_jsonl(tmp_path / "t.jsonl"), tiny.tokenizer(), None)  # the same rows, from disk
    assert len(encodings) == 5
    assert [len(row.input_ids) for row in encoded.encode_rows(given, words, 9)] == [9] * 5
    assert len(encodings) == 10
    words.chat_template += "{{ a }}"
    encoded.encode_rows(given, words, None)
    words.cpift_template_kwargs = {"a": 1}
    encoded.encode_rows(given, words, None)
    words.eos_token = "<|pad|>"
    encoded.encode_rows(given, words, None)
    encoded.encode_rows(given[:4], words, None)
    assert len(encodings) == 29
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(encoded, "LARGE", 5)
    for _ in range(2):
        encode_measured(given, words, None)
    assert len(encodings) == 34
    assert len(list((tmp_path / "cache/cpift").iterdir())) == 1


def test_a_row_that_is_refused_leaves_no_file(tmp_path: Path, encodings: list[str]) -> None:
    """Or a later call would take the rows before it for all."""
    words, given = tiny.tokenizer(), tiny.rows("upper", 2, 0)
    words.chat_template = "{% if messages[0].content == 'no' %}{{ raise_exception('no') }}{% endif %}" + tiny.CHATML
    refused = {"messages": [{"role": "user", "content": "no"}, given[0]["messages"][1]]}
    for _ in range(2):
        with pytest.raises(CpiftError, match="refuses a row"):
            encoded.encode_rows([*given, refused], words, None)
    assert not list((tmp_path / "scratch").iterdir())
