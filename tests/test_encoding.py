"""Rows to token ids: exactly the assistant's part is marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cpift.data.encoding import IGNORED, encode, encode_all, prompt_ids
from cpift.errors import CpiftError

USER, ANSWER = {"role": "user", "content": "say hi"}, {"role": "assistant", "content": "hi there"}
TURNS = [USER, ANSWER, {"role": "user", "content": "again"}, {"role": "assistant", "content": "ho"}]

SPOKEN = (  # ChatML that marks the assistant's part itself, for transformers' own mask
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>\n{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CONTENTS = ["hi there", "é ß 漢字 🙂", "a    b", "def f(x):\n        return x", " x ", ""]


def merging(trim: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges over words, trained on a few sentences."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    how = trainers.BpeTrainer(
        vocab_size=330, special_tokens=tiny.SPECIAL, initial_alphabet=letters, show_progress=False
    )
    core.train_from_iterator(["def f(x):\n        return x\n", "say hi there again", "assistant user"] * 20, how)
    core.post_processor = processors.ByteLevel(trim_offsets=trim)
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|im_end|>")
    made.chat_template = SPOKEN
    return made


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


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(CONTENTS), min_size=2, max_size=6))
def test_every_turn_is_marked_as_transformers_marks_it(contents: list[str]) -> None:
    """Ids and labels are those of apply_chat_template with the template's own generation marks; merges, bytes, blanks."""
    words = merging()
    turns = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    their = words.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ours = encode({"messages": turns}, words)
    assert ours.input_ids == their["input_ids"]
    assert [label != IGNORED for label in ours.labels] == [bool(m) for m in their["assistant_masks"]]


def test_truncation_keeps_the_beginning() -> None:
    """Ids and labels alike, to any length."""
    words = merging()
    whole = encode({"messages": TURNS}, words)
    for length in range(1, len(whole.input_ids) + 3):
        part = encode({"messages": TURNS}, words, length)
        assert (part.input_ids, part.labels) == (whole.input_ids[:length], whole.labels[:length])


def test_blanks_are_marked_where_offsets_are_trimmed() -> None:
    """Indentation within an answer is learnt, whatever the post-processor says about offsets."""
    row = {"messages": [USER, {"role": "assistant", "content": "a    b"}]}
    assert marked(row, merging(trim=True)) == marked(row, merging(trim=False)) == "a    b<|im_end|>\n"


def test_an_end_token_of_the_tokenizers_own_is_marked() -> None:
    """Where the tokenizer ends every text by itself, that end is still learnt."""
    words = tiny.tokenizer()
    ends = [("<|im_end|>", words.eos_token_id)]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=ends)
    assert marked({"prompt": "2 + 2 =", "completion": " 4"}, words) == " 4<|im_end|>"


def test_the_header_of_a_first_turn_is_not_marked() -> None:
    """A conversation that the assistant opens."""
    assert marked({"messages": [ANSWER, USER, ANSWER]}, tiny.tokenizer()) == "hi there<|im_end|>\n" * 2
