"""Shapes of rows: each known one as its sets write it, and what it becomes. Expectations are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from cpift.data.encoding import encode
from cpift.data.rows import load_rows, load_task, metric_of
from cpift.data.shapes import SHAPES, recognise
from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.recipe.task import Task


def talk(*contents: str, system: str = "") -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


KNOWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("messages", {"messages": talk("a", "b"), "answer": "b"}, {"messages": talk("a", "b"), "answer": "b"}),
    # ultrachat_200k, no_robots: prompt and category are only about the conversation
    ("messages", {"prompt": "a", "prompt_id": "7", "messages": talk("a", "b")}, {"messages": talk("a", "b")}),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                      {"role": "assistant", "content": "c", "name": None}]},
        {"messages": talk("ab", "c")},
    ),
    ("prompt_completion", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
    (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"messages": talk("a", "b", system="s")},
    ),
    ("sharegpt", {"system": "s", "conversations": talk("a", "b")}, {"messages": talk("a", "b", system="s")}),
    (
        "sharegpt",
        {"conversation": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]},
        {"messages": talk("a", "b")},
    ),
    (
        "sharegpt",
        {
            "tools": "[]",
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "b"},
            ],
        },
        {
            "tools": "[]",
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None,
                 "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "content": "2"},
                {"role": "assistant", "content": "b"},
            ],
        },
    ),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, {"messages": talk("a", "b")}),
    # tatsu-lab/alpaca has the row once more, written out
    ("alpaca", {"instruction": "a", "input": "i", "output": "b", "text": "Below is"}, {"messages": talk("a\ni", "b")}),
    ("alpaca", {"instruction": "a", "context": "c", "response": "b"}, {"messages": talk("a\nc", "b")}),  # Dolly
    (
        "alpaca",
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        {"messages": talk("a", "b", "c", "d", system="s")},
    ),
    (
        "question_answer",
        {"question": "a", "answer": "b #### 1"},
        {"messages": talk("a", "b #### 1"), "answer": "b #### 1"},
    ),
    # cais/mmlu and allenai/ai2_arc: the index or label of the right option is not what is learnt
    ("multiple_choice", {"question": "a", "choices": ["b", "c"], "answer": 1, "subject": "s"},
     {"messages": talk("a", "c"), "answer": "c", "options": ["b", "c"]}),
    ("multiple_choice", {"id": "1", "question": "a", "choices": {"text": ["b", "c"], "label": ["1", "2"]}, "answerKey": "1"},
     {"messages": talk("a", "b"), "answer": "b", "options": ["b", "c"]}),
    ("multiple_choice", {"question": "a", "options": ["b", "c"], "answer": "B"}, {"messages": talk("a", "c"), "answer": "c"}),
    ("prompt_response", {"prompt": "a", "response": "b"}, {"messages": talk("a", "b")}),
    # OpenOrca
    ("prompt_response", {"id": "1", "system_prompt": "s", "question": "a", "response": "b"},
     {"messages": talk("a", "b", system="s")}),
    # open-r1's mathematics: a worked solution, and the short answer to compare with
    ("prompt_response", {"problem": "a", "solution": "b 3", "answer": "3"}, {"messages": talk("a", "b 3"), "answer": "3"}),
    ("prompt_response", {"query": "a", "response": "b"}, {"messages": talk("a", "b")}),
    ("prompt_response", {"input": "a", "output": "b"}, {"messages": talk("a", "b")}),
    ("text", {"text": "a b", "url": "x"}, {"prompt": "", "completion": "a b"}),
    ("completion", {"completion": "a b"}, {"prompt": "", "completion": "a b"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "made"), KNOWN, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(KNOWN)])
def test_a_known_shape(tmp_path: Path, name: str, row: dict[str, Any], made: dict[str, Any]) -> None:
    """Recognised, converted, reported; other columns do not matter."""
    file = tiny.jsonl(tmp_path / "d.jsonl", [row])
    found = load_task("t", Task(train=str(file), eval=str(file)), 0)
    assert {key: found.train[0].get(key) for key in made} == made
    used = ("messages", "prompt", "completion", "answer")
    assert {key for key in found.train[0] if key in used and key in found.train[0]} - {"prompt"} == made.keys() - {
        "prompt", "tools", "options"
    }  # fmt: skip
    assert found.shapes == {name: 2}


def test_every_shape_is_tried() -> None:
    """A new line of the table needs a row above."""
    assert {name for name, _, _ in KNOWN} == set(SHAPES)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference set, for DPO"),
        ({"chosen": talk("a", "b"), "rejected": talk("a", "c")}, "a preference set, for DPO"),
        ({"prompt": "a", "completion": "b", "label": False}, "unpaired preference set, for KTO"),
        ({"messages": talk("a", "b"), "conversations": talk("a", "b")}, "fits the shapes messages and sharegpt"),
        ({"messages": talk("a", "b"), "prompt": "a", "completion": "b"}, "fits the shapes messages and prompt_completion"),
        ({"question": "a", "choices": ["b", "c"], "answer": "d"}, "no option, nor the index or letter of one; shape: question_answer takes"),
        ({"question": "a", "answer": "b", "response": "c"}, "fits the shapes question_answer and prompt_response"),
        ({"text": "a", "label": "b"}, "but text, label; known shapes are messages, prompt_completion, sharegpt, alpaca"),
        ({"document": "a", "summary": "b"}, "but document, summary; known shapes"),
        ({"prompt": "a", "response": "b", "output": "c"}, "could be prompt and response; prompt and output"),
        ({"instruction": "a", "output": "b", "response": "c"}, "has output and response"),
        ({"instruction": "", "output": "b"}, "the prompt is empty"),
        ({"instruction": "a", "output": ["b"]}, "the column output holds list, where text is needed"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "a turn is from 'alien'; known are"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of type image; only text"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}, "must be a list of"),
        ({"conversations": [{"from": "function_call", "value": "f(1)"}]}, "no JSON with name and arguments"),
        ({"system": "s", "conversations": talk("a", "b", system="t")}, "a system column, and a system turn"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    """With file, line, and what to do."""
    file = tiny.jsonl(tmp_path / "d.jsonl", [row])
    with pytest.raises(CpiftError, match=r"tasks\.t: .*d\.jsonl, line 1: ") as caught:
        load_rows("t", Task(train=str(file), eval=str(file)), 0)
    assert words in str(caught.value)


def load(file: Path, **more: Any) -> list[Any]:
    return load_rows("t", Task(train=str(file), **{"eval": str(file), **more}), 0)[0]


def test_columns_give_our_names(tmp_path: Path) -> None:
    """Ours to theirs; one column may serve twice; a column that a row lacks is missing, one that none has a mistake."""
    file = tiny.jsonl(
        tmp_path / "d.jsonl", [{"ask": "a", "say": "b", "label": 1, "hint": "c"}, {"ask": "d", "say": "e"}]
    )
    rows = load(file, columns={"prompt": "ask", "completion": "say", "answer": "say"})
    assert [(r["prompt"], r["completion"], r["answer"]) for r in rows] == [("a", "b", "b"), ("d", "e", "e")]
    rows = load(file, columns={"instruction": "ask", "input": "hint", "output": "say"})
    assert [r["messages"] for r in rows] == [talk("a\nc", "b"), talk("d", "e")]
    for wrong in ({"prompt": "asks", "completion": "say"}, {"prompt": "ask", "completion": "say", "input": "asks"}):
        with pytest.raises(CpiftError, match=r"no column 'asks', which columns: names, but .*; did you mean 'ask'\?"):
            load(file, columns=wrong)
    chosen = tiny.jsonl(tmp_path / "c.jsonl", [{"chosen": talk("a", "b"), "rejected": talk("a", "c")}])
    assert load(chosen, columns={"messages": "chosen"})[0]["messages"] == talk("a", "b")
    with pytest.raises(ValueError, match="did you mean 'completion'"):
        Task(train="x", eval="y", columns={"completions": "x"})


def test_a_shape_that_is_asked_for(tmp_path: Path) -> None:
    """Where the columns fit several; and for a text beside other columns."""
    both = tiny.jsonl(tmp_path / "b.jsonl", [{"messages": talk("a", "b"), "conversations": talk("c", "d")}])
    assert load(both, shape="messages")[0]["messages"] == talk("a", "b")
    assert load(both, shape="sharegpt")[0]["messages"] == talk("c", "d")
    pair = tiny.jsonl(tmp_path / "p.jsonl", [{"messages": talk("a", "b"), "prompt": "c", "completion": "d"}])
    assert load(pair, shape="prompt_completion") == [{"prompt": "c", "completion": "d"}]
    text = tiny.jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": "x"}])
    assert load(text, shape="text")[0]["completion"] == "a"
    with pytest.raises(CpiftError, match="is not of the shape alpaca, which needs instruction and output"):
        load(text, shape="alpaca")
    with pytest.raises(ValueError, match="is none of messages, prompt_completion"):
        Task(train="x", eval="y", shape="alpacca")


def test_rows_without_a_response_are_left_out_and_counted(tmp_path: Path) -> None:
    """tatsu-lab/alpaca has some."""
    rows = [{"instruction": str(i), "input": "", "output": " " if i == 2 else "x"} for i in range(4)]
    train, _, warnings = load_rows("t", Task(train=str(tiny.jsonl(tmp_path / "d.jsonl", rows)), eval=1), 0)
    assert len(train) == 2
    assert len(warnings) == 1
    assert "1 rows of d.jsonl" in warnings[0].text, "no local path"
    assert "empty response" in warnings[0].text


def test_all_of_a_text_is_trained_as_trl_does(tmp_path: Path) -> None:
    """TRL's language modelling appends the end token to a text, and takes the loss on every token."""
    row = load(tiny.jsonl(tmp_path / "d.jsonl", [{"text": "some text"}]))[0]
    words = tiny.tokenizer()
    expected = words("some text" + words.eos_token)["input_ids"]
    encoded = encode(row, words)
    assert encoded.input_ids == expected
    assert encoded.labels == expected
    assert metric_of("t", Task(train="x", eval="y"), [row]) == "loss"
    with pytest.raises(CpiftError, match="needs an answer"):
        metric_of("t", Task(train="x", eval="y", metric="exact_match"), [row])


def test_gsm8k_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """openai/gsm8k: question and answer, configuration main, splits train and test."""
    import datasets

    asked = []
    rows = [{"question": "How many?", "answer": "1 + 1 = 2\n#### 2"}, {"question": "And?", "answer": "#### 3"}]

    def fake(path: str, **more: Any) -> Any:
        asked.append((path, more))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    task = Task(train="openai/gsm8k", eval="openai/gsm8k", config="main", pattern="#### (.+)")
    found = load_task("t", task, 0)
    assert asked == [("openai/gsm8k", {"split": s, "name": "main"}) for s in ("train", "test")]
    assert found.train[0] == {"messages": talk("How many?", "1 + 1 = 2\n#### 2"), "answer": "1 + 1 = 2\n#### 2"}
    assert metric_of("t", task, found.evaluation) == "exact_match"
    assert found.shapes == {"question_answer": 4}


def dataset_info(folder: Path, **sets: Any) -> str:
    (folder / "dataset_info.json").write_text(json.dumps(sets))
    return str(folder / "dataset_info.json")


def test_llama_factorys_dataset_info(tmp_path: Path) -> None:
    """Files beside it; columns, tags and formatting as there."""
    tiny.jsonl(
        tmp_path / "a.jsonl", [{"q": "a", "hint": "h", "r": "b", "sys": "s"}, {"q": "c", "hint": None, "r": "d"}]
    )
    tiny.jsonl(tmp_path / "s.jsonl", [{"chat": [{"who": "me", "what": "a"}, {"who": "it", "what": "b"}]}])
    tiny.jsonl(tmp_path / "o.jsonl", [{"messages": talk("a", "b", system="s")}])
    info = dataset_info(
        tmp_path,
        mine={"file_name": "a.jsonl", "columns": {"prompt": "q", "query": "hint", "response": "r", "system": "sys"}},
        chats={
            "file_name": "s.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "chat"},
            "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"},
        },
        open={"file_name": "o.jsonl", "formatting": "openai", "columns": {"messages": "messages"}},
        pairs={"file_name": "a.jsonl", "ranking": True},
        images={"file_name": "a.jsonl", "formatting": "sharegpt", "columns": {"images": "images"}},
        packed={"file_name": "a.jsonl", "folder": "x"},
    )

    def of(name: str) -> list[Any]:
        path = f"{info}#{name}"
        return [row["messages"] for row in load_rows("t", Task(train=path, eval=path), 0)[0]]

    assert of("mine") == [talk("a\nh", "b", system="s"), talk("c", "d")]
    assert of("chats") == [talk("a", "b")]
    assert of("open") == [talk("a", "b", system="s")]
    for name, words in (
        ("pairs", "a preference set"),
        ("images", "images is not supported"),
        ("packed", "folder: .x. is not supported"),
        ("mina", "did you mean 'mine'"),
    ):
        with pytest.raises(CpiftError, match=words):
            of(name)


def test_the_path_to_a_dataset_info_counts_from_the_recipe(tmp_path: Path) -> None:
    """As every path does; the lists of sets, too."""
    task = {"train": ["data/a.jsonl", {"path": "dataset_info.json#b"}], "eval": 1}
    (tmp_path / "r.yaml").write_text(json.dumps({"model": "m", "tasks": {"t": task}}))
    found = Recipe.load(tmp_path / "r.yaml").tasks["t"].sources("train")
    assert [source.path for source in found] == [
        str(tmp_path / "data/a.jsonl"),
        str(tmp_path / "dataset_info.json#b"),
    ]


def test_a_row_says_its_shape() -> None:
    """The function that the recipe, the docs and the command share."""
    assert recognise({"instruction": 1, "output": 2}).name == "alpaca"
