"""Rows to token ids: exactly the assistant's part is marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from datasets import Dataset
from transformers import AutoModelForCausalLM

from cpift.encoding import IGNORED, encode, encode_all, prompt_ids
from cpift.errors import CpiftError

USER, ANSWER = {"role": "user", "content": "say hi"}, {"role": "assistant", "content": "hi there"}
TURNS = [USER, ANSWER, {"role": "user", "content": "again"}, {"role": "assistant", "content": "ho"}]


def marked(row: Any, words: Any) -> str:
    """What the loss is taken on, as text."""
    return words.decode([label for label in encode(row, words).labels if label != IGNORED])


def test_every_assistant_turn_is_marked_with_its_end() -> None:
    """And nothing else: not the user's turns, not the headers."""
    words = tiny.tokenizer()
    assert marked({"messages": [USER, ANSWER]}, words) == "hi there<|im_end|>\n"
    assert marked({"messages": TURNS}, words) == "hi there<|im_end|>\nho<|im_end|>\n"


def test_only_the_completion_of_prompt_and_completion_is_marked() -> None:
    """In messages, and in plain text with the end token put after it."""
    words = tiny.tokenizer()
    assert marked({"prompt": TURNS[:3], "completion": TURNS[3:]}, words) == "ho<|im_end|>\n"
    assert marked({"prompt": "2 + 2 =", "completion": " 4"}, words) == " 4<|im_end|>"
    assert encode({"prompt": "a", "completion": "b"}, words).input_ids == [
        *words("ab")["input_ids"],
        words.eos_token_id,
    ]


def test_the_ids_are_those_of_the_chat_template() -> None:
    """And what an answer is generated from is their beginning."""
    words = tiny.tokenizer()
    expected = words.apply_chat_template(TURNS, tokenize=True, return_dict=True)["input_ids"]
    assert encode({"messages": TURNS}, words).input_ids == expected
    prompt = prompt_ids({"messages": TURNS}, words)
    assert expected[: len(prompt)] == prompt
    assert words.decode(expected[len(prompt) :]) == "ho<|im_end|>\n"


@pytest.mark.parametrize("row", [{"prompt": [USER], "completion": [ANSWER]}, {"prompt": "2 + 2 =", "completion": " 4"}])
def test_ids_and_labels_are_those_that_trl_makes(tmp_path: Path, row: Any) -> None:
    """A single turn, prepared by SFTTrainer itself from prompt and completion."""
    from trl import SFTConfig, SFTTrainer

    words = tiny.tokenizer()
    network = AutoModelForCausalLM.from_pretrained(tiny.base(tmp_path / "base"))
    config = SFTConfig(
        output_dir=str(tmp_path / "o"), report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False
    )
    trainer = SFTTrainer(network, config, train_dataset=Dataset.from_list([row]), processing_class=words)
    theirs, ours = trainer.train_dataset[0], encode(row, words)
    assert list(theirs["input_ids"]) == ours.input_ids
    assert list(theirs["labels"]) == ours.labels


def test_rows_with_nothing_left_to_learn_are_left_out_and_counted() -> None:
    """After truncation."""
    words = tiny.tokenizer()
    long = {"messages": [{"role": "user", "content": "x" * 60}, ANSWER]}
    kept, empty = encode_all([long, {"messages": [USER, ANSWER]}], words, 70)
    assert (len(kept), empty) == (1, 1)
    assert len(encode({"messages": TURNS}, words, 30).input_ids) == 30


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """No span of the whole could be trusted; a tokenizer without a template is refused for conversations."""
    words = tiny.tokenizer()
    words.chat_template = "{{ messages | length }}" + tiny.CHATML
    with pytest.raises(CpiftError, match="rewrites earlier turns"):
        encode({"messages": TURNS}, words)
    words.chat_template = None
    with pytest.raises(CpiftError, match="no chat template"):
        encode({"messages": TURNS}, words)
