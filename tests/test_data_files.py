"""Kinds of files, sets of the hub and of disks, several sets in one task."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import tiny

from cpift.data.files import KINDS, kind_of
from cpift.data.rows import load_rows, load_task
from cpift.errors import CpiftError
from cpift.files import manifest
from cpift.recipe.recipe import Recipe
from cpift.recipe.task import Task
from cpift.runs.stage import Run
from cpift.runs.stages.data import rows_stage

ROWS = [{"prompt": 'ä, "b"\nc', "completion": "1,5"}, {"prompt": "d", "completion": "007"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'prompt,completion\r\n"ä, ""b""\nc","1,5"\r\nd,007\r\n'
BOM = "\ufeff"


def zstd(text: str) -> bytes:
    return bytes(pyarrow.compress(text.encode(), codec="zstd", asbytes=True))


FILES: dict[str, bytes] = {
    "d.jsonl": LINES.encode(),
    "bom.jsonl": (BOM + LINES).encode(),
    "crlf.jsonl": LINES.replace("\n", "\r\n").encode(),
    "D.JSONL": LINES.encode(),
    "d.ndjson": LINES.encode(),
    "d.jsonl.gz": gzip.compress(LINES.encode()),
    "D.JSONL.GZ": gzip.compress((BOM + LINES).encode()),
    "d.jsonl.zst": zstd(LINES),
    "d.json": json.dumps(ROWS, indent=1).encode(),
    "bom.json": (BOM + json.dumps(ROWS)).encode(),
    "lines.json": LINES.encode(),
    "d.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "d.csv": CSV.encode(),
    "bom.CSV": (BOM + CSV).encode(),
    "semicolon.csv": CSV.replace(",", ";").replace("ä;", "ä,").replace("1;5", "1,5").encode(),
    "d.csv.gz": gzip.compress(CSV.encode()),
    "d.tsv": 'prompt\tcompletion\n"ä, ""b""\nc"\t1,5\nd\t007\n'.encode(),
}


def load(path: Path | str, **more: Any) -> list[Any]:
    return load_rows("t", Task(train=str(path), **{"eval": str(path), **more}), 0)[0]


@pytest.mark.parametrize("name", FILES)
def test_a_kind_of_file(tmp_path: Path, name: str) -> None:
    """The same rows from each: text stays text, with its commas, line breaks and zeros."""
    (tmp_path / name).write_bytes(FILES[name])
    assert load(tmp_path / name) == ROWS


def test_parquet_in_any_case(tmp_path: Path) -> None:
    """With nulls left out, at the top and in turns."""
    import datasets

    turns = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": "x"}]
    rows = [{"messages": turns, "answer": None}, {"messages": turns, "answer": "b"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "D.Parquet")
    assert load(tmp_path / "D.Parquet") == [
        {"messages": [{"role": "user", "content": "a"}, turns[1]]},
        {"messages": [{"role": "user", "content": "a"}, turns[1]], "answer": "b"},
    ]


def test_every_kind_is_tried() -> None:
    """A new line of the table needs a file above."""
    tried = {str(kind_of(name)) for name in [*FILES, "D.Parquet"]}
    assert {str(kind) for kind in KINDS} == tried
    assert kind_of("org/set") is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.csv", b"prompt,completion\na,b,c\n", "line 2: has 3 cells, and the header has 2"),
        ("d.csv", b"prompt,prompt\na,b\n", "a column stands twice"),
        ("d.csv", b'prompt,completion\n"a,b\n', "line 2: not a table"),
        ("d.csv", b"x,y\na,b\n", "line 2: has neither messages nor prompt and completion, but x, y"),
        ("d.csv", b"prompt,completion\n", "holds no rows"),
        ("d.csv", b"", "holds no rows"),
        ("d.tsv", "ä".encode("latin-1"), "not UTF-8"),
        ("d.jsonl", LINES.encode("utf-16"), "not UTF-8"),
        ("d.jsonl.gz", LINES.encode(), "cannot be read"),
        ("d.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-20], "cannot be read"),
        ("d.jsonl.zst", LINES.encode(), "cannot be read"),
        ("d.txt", b"words", "a file of no known kind; known are .jsonl"),
        ("d.jsonl.bz2", b"x", "a file of no known kind"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    """File and line."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CpiftError, match=words) as caught:
        load(tmp_path / name)
    assert str(caught.value).startswith("tasks.t: ")
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["d.json", "d.txt", "d.jsonl.gz"])
def test_a_file_that_is_there_with_another_ending_is_named(tmp_path: Path, name: str) -> None:
    """Also where the ending is of no known kind, which could be a set of the hub."""
    tiny.jsonl(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(CpiftError, match=f"{name} is missing; did you mean d.jsonl"):
        load(tmp_path / name)


def test_what_a_file_does_not_have_is_refused(tmp_path: Path) -> None:
    """A split, a configuration or a revision would do nothing."""
    file = tiny.jsonl(tmp_path / "d.jsonl", ROWS)
    for more in ({"split": "train[:10]"}, {"config": "main"}, {"revision": "main"}, {"eval_split": "validation"}):
        with pytest.raises(CpiftError, match=f"is a file, which has no {next(iter(more)).removeprefix('eval_')}"):
            load(file, **more)


def test_a_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuration, revision and split reach datasets; a set within a list has its own."""
    import datasets

    asked = []

    def fake(path: str, **more: Any) -> Any:
        asked.append({"path": path, **more})
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    load("org/set", split="train[:2000]", eval_split="test[:1%]", config="main", revision="abc")
    same = {"path": "org/set", "name": "main", "revision": "abc"}
    assert asked == [{**same, "split": "train[:2000]"}, {**same, "split": "test[:1%]"}]
    asked.clear()
    one = {"path": "org/one", "config": "b", "split": "validation", "revision": "x"}
    load_rows("t", Task(train=[one, "org/two"], eval=1, config="main"), 0)
    assert asked == [
        {"path": "org/one", "name": "b", "split": "validation", "revision": "x"},
        {"path": "org/two", "name": "main", "split": "train"},
    ]


def test_a_missing_configuration_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets lists those that there are."""
    import datasets

    def fake(path: str, **more: Any) -> Any:
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    with pytest.raises(CpiftError, match=r"openai/gsm8k .*'main', 'socratic'\]; config: in the recipe names it"):
        load("openai/gsm8k")


def test_folders(tmp_path: Path) -> None:
    """One with files of splits, and one that save_to_disk has written."""
    import datasets

    for split, row in zip(("train", "test"), ROWS, strict=True):
        tiny.jsonl(tmp_path / "plain" / f"{split}.jsonl", [row])
    train, evaluation, _ = load_rows("t", Task(train=str(tmp_path / "plain"), eval=str(tmp_path / "plain")), 0)
    assert (train, evaluation) == (ROWS[:1], ROWS[1:])
    parts = {split: datasets.Dataset.from_list([row]) for split, row in zip(("train", "test"), ROWS, strict=True)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    train, evaluation, _ = load_rows("t", Task(train=str(tmp_path / "saved"), eval=str(tmp_path / "saved")), 0)
    assert (train, evaluation) == (ROWS[:1], ROWS[1:])
    with pytest.raises(CpiftError, match="it has the splits train, test"):
        load(tmp_path / "saved", split="validation")


def numbered(path: Path, letter: str, count: int) -> Path:
    return tiny.jsonl(path, [{"prompt": f"{letter}{i}", "completion": "x"} for i in range(count)])


def test_several_sets_with_weights(tmp_path: Path) -> None:
    """Twice, a half, and as it is; evaluation rows are taken away first, and never repeated."""
    files = {letter: numbered(tmp_path / f"{letter}.jsonl", letter, 20) for letter in "abc"}
    sets = [{"path": str(files["a"]), "weight": 2}, {"path": str(files["b"]), "weight": 0.5}, str(files["c"])]
    found = load_task("t", Task(train=sets, eval=6), 0)
    held = {row["prompt"] for row in found.evaluation}
    assert len(found.evaluation) == len(held) == 6
    counts = Counter(row["prompt"] for row in found.train)
    assert not held & counts.keys()
    left = {letter: 20 - sum(name.startswith(letter) for name in held) for letter in "abc"}
    assert {n: c for n, c in counts.items() if n[0] == "a"} == {f"a{i}": 2 for i in range(20) if f"a{i}" not in held}
    assert sum(c for n, c in counts.items() if n[0] == "b") == round(left["b"] / 2)
    assert sum(c for n, c in counts.items() if n[0] == "c") == left["c"]
    assert max(c for n, c in counts.items() if n[0] in "bc") == 1
    assert [(s.rows, s.used) for s in found.sources] == [
        (left["a"], 2 * left["a"]), (left["b"], round(left["b"] / 2)), (left["c"], left["c"])
    ]  # fmt: skip
    assert found == load_task("t", Task(train=sets, eval=6), 0)
    assert found.train != load_task("t", Task(train=sets, eval=6), 1).train
    with pytest.raises(ValueError, match="weight is for training rows"):
        Task(train=sets, eval=sets)


def test_sets_of_unlike_shapes(tmp_path: Path) -> None:
    """Each with columns of its own."""
    a = tiny.jsonl(tmp_path / "a.jsonl", [{"instruction": "a", "input": "", "output": "b"}])
    b = tiny.jsonl(tmp_path / "b.jsonl", [{"ask": "c", "say": "d"}])
    sets = [{"path": str(a)}, {"path": str(b), "columns": {"instruction": "ask", "output": "say"}}]
    found = load_task("t", Task(train=sets, eval=str(a)), 0)
    assert [[turn["content"] for turn in row["messages"]] for row in found.train] == [["a", "b"], ["c", "d"]]


def key(task: dict[str, Any]) -> str:
    recipe = Recipe.parse({"model": "m", "tasks": {"t": task}})
    return manifest.key_of(rows_stage(Run(recipe, Path("out")), "t").settings, {})


def test_runs_made_before_the_newer_keys_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of stages as commit 17d2b0d gave them; a newer key that is given changes them, and so does a file."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a", "completion": "b", "answer": "b"}\n')
    old = {"train": "a.jsonl", "eval": "a.jsonl", "pattern": "(.)", "train_rows": 3, "licence": "MIT"}
    assert key(old) == "dd4088fed0dde66a478dd1701e1b63db"
    hub = {"train": "org/set", "split": "train_sft", "eval": 300, "metric": "loss"}
    assert key(hub) == "7cc18dd9b163bfc8463ff9aede51b9cb"
    newer = [
        {"columns": {"prompt": "x", "completion": "y"}},
        {"shape": "text"},
        {"revision": "abc"},
        {"config": "main"},
    ]
    assert len({key(hub), *(key({**hub, **more}) for more in newer)}) == 5
    listed = {**old, "train": [{"path": "a.jsonl", "weight": 2}]}
    entry = {**old, "train": "dataset_info.json#a"}
    (tmp_path / "dataset_info.json").write_text('{"a": {"file_name": "a.jsonl"}}')
    before = key(listed), key(entry)
    assert len({*before, key(old), key({**listed, "train": [{"path": "a.jsonl", "weight": 3}]})}) == 4
    file.write_text('{"prompt": "c", "completion": "b", "answer": "b"}\n')
    assert not {key(listed), key(entry)} & {*before}


def test_a_recipe_with_lists_is_written_and_read_again() -> None:
    """As the run folder keeps it."""
    import yaml

    task = {"train": ["a/b", {"path": "c/d", "weight": 2}], "eval": {"path": "e/f", "split": "validation"}}
    recipe = Recipe.parse({"model": "m", "tasks": {"t": task}})
    assert Recipe.parse(yaml.safe_load(recipe.dump())) == recipe
    assert [s.split for s in recipe.tasks["t"].sources("eval")] == ["validation"]
    for wrong, words in (
        ({"train": [], "eval": 1}, "train: is an empty list"),
        ({"train": [{"path": "a", "wieght": 2}], "eval": 1}, "did you mean 'weight'"),
        ({"train": [{"path": "a", "weight": 0}], "eval": 1}, "weight: "),
        ({"train": "a", "eval": 1, "config": {"x": 1}}, "of a data set it is a name"),
        ({"generate": "x", "train": 1, "eval": 1, "columns": {"prompt": "a"}}, "columns is for sets of rows"),
        ({"generate": "x", "train": 1, "eval": 1, "config": "main"}, "config is a table of settings"),
    ):
        with pytest.raises(CpiftError, match=words):
            Recipe.parse({"model": "m", "tasks": {"t": wrong}})
