"""A GGUF base: rows and tokens are checked before a run, by the tokenizer in the file, without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_run
from gguf import GGUFWriter

from cpift.errors import CpiftError
from cpift.recipe.recipe import Recipe
from cpift.runs.preflight import read_rows
from cpift.runs.stage import Run
from cpift.train.limits import limits_of_place

REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"


def write_gguf(file: Path, template: str, positions: str = "") -> Path:
    """The tokenizer of tests/tiny.py, and one weight that no model could be made of."""
    words = tiny.tokenizer()
    tokens = [token for token, _ in sorted(words.get_vocab().items(), key=lambda pair: pair[1])] + ["~|"]
    made = GGUFWriter(file, "llama")
    for add in (made.add_block_count, made.add_head_count):
        add(1)
    made.add_context_length(128)
    made.add_embedding_length(8)
    made.add_vocab_size(len(tokens))
    made.add_tokenizer_model("gpt2")
    made.add_token_list(tokens)
    made.add_token_types([3 if token in tiny.SPECIAL else 1 for token in tokens])
    made.add_token_merges(["~ |"])
    made.add_eos_token_id(words.eos_token_id)
    made.add_pad_token_id(words.pad_token_id)
    made.add_chat_template(template)
    made.add_tensor(positions or "broken", np.zeros((2, 8), np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return file


def recipe(place: Path, template: str, rows: list[Any]) -> Recipe:
    tiny.jsonl(place / "t.jsonl", rows)
    tasks = {"t": {"train": str(place / "t.jsonl"), "eval": 2, "metric": "loss"}}
    return Recipe.parse({"model": str(write_gguf(place / "m.gguf", template)), "tasks": tasks})


def test_rows_that_the_template_refuses_are_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    rows = tiny.rows("upper", 6, 0)
    rows[4]["messages"].insert(0, {"role": "system", "content": "be brief"})
    with pytest.raises(CpiftError, match=r"tasks.t: the chat template refuses a row \(no system here\)"):
        read_rows(Run(recipe(tmp_path, REFUSES_SYSTEM + tiny.CHATML, rows), tmp_path / "out"))


def test_rows_and_cpift_data_need_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows' tokens are those of the tokenizer that the file was made from."""
    asked = recipe(tmp_path, tiny.CHATML, tiny.rows("upper", 6, 0))
    read_rows(Run(asked, tmp_path / "out"))
    (tmp_path / "r.json").write_text(json.dumps(asked.model_dump(by_alias=True)))
    code, out, _ = tiny_run.call(capsys, "data", tmp_path / "r.json", "--json")
    assert code == 0
    shown = json.loads(out)["tasks"]["t"]["train"]
    plain = Recipe.parse(tiny.recipe(tmp_path, ("upper",)))
    (tmp_path / "p.json").write_text(json.dumps({**asked.model_dump(by_alias=True), "model": plain.model}))
    _, out, _ = tiny_run.call(capsys, "data", tmp_path / "p.json", "--json")
    assert json.loads(out)["tasks"]["t"]["train"] == shown
    assert shown["rows"] == 4


def test_a_table_of_positions_is_known_by_its_name(tmp_path: Path) -> None:
    """GPT-2's in GGUF: rows beyond it are refused before the run."""
    assert limits_of_place(write_gguf(tmp_path / "a.gguf", tiny.CHATML)).absolute is False
    assert limits_of_place(write_gguf(tmp_path / "b.gguf", tiny.CHATML, "position_embd.weight")).absolute is True
