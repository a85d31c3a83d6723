"""Where prompt and answer share a token: it is learnt, it is scored, and coins stay coins."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cpift.data.encoding import IGNORED, SPANS_BORDER, encode, notes_of
from cpift.data.healing import ContinueWith, starts, text_of
from cpift.evaluation.scores import EvalTask, evaluate, generate
from cpift.train.fine_tune import fine_tune
from cpift.train.models import load_model, load_tokenizer
from cpift.train.spec import TrainSpec

TEXTS = ["Label: positive", "Label: negative", "Label:\npositive", "Label:\tnegative", "Assistant: positive", "x:7 (a)"]
# A header that ends in a blank, and an end of turn that is not the tokenizer's end token.
ASSISTANT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}User: {{ m['content'] }}\n{% else %}"
    "Assistant: {{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)

KINDS: dict[str, Any] = {
    "byte level": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "split": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "no splits": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "metaspace": pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
}


def tokenizer(kind: str = "byte level") -> PreTrainedTokenizerFast:
    """BPE with merges over the blanks, learnt from a few labels."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = KINDS[kind]
    core.decoder = decoders.Metaspace(prepend_scheme="never") if kind == "metaspace" else decoders.ByteLevel()
    letters = sorted({*"".join(TEXTS), "▁", *"abcdefghijklmnopqrstuvwxyzUANL0123456789?"})
    how = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*tiny.SPECIAL, "<|end|>"],
        initial_alphabet=letters if kind == "metaspace" else sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS * 20, how)
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = ASSISTANT
    return made


def plain(prompt: str, completion: str) -> dict[str, Any]:
    """A row of plain text, with its answer."""
    return {"prompt": prompt, "completion": completion, "answer": completion.strip()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["Label: ", "Label:\n", "Label:\t", "Label:", "Label: po", ""])
def test_every_token_that_holds_a_character_of_the_answer_is_learnt(kind: str, end: str) -> None:
    """Whichever way the text is cut into tokens: the labels spell the answer, and their first token holds its first
    character."""
    words = tokenizer(kind)
    row = plain(f"x {end}", "sitive" if end.endswith("po") else "positive")
    made = encode(row, words)
    learnt = words.decode([label for label in made.labels if label != IGNORED], skip_special_tokens=True)
    assert learnt.strip().endswith(row["completion"])
    first = next(i for i, label in enumerate(made.labels) if label != IGNORED)
    before = (
        words("x" + words.decode(made.input_ids[:first])[1:], add_special_tokens=False)["input_ids"] if first else []
    )
    assert len(words.decode(before)) <= len(row["prompt"])
    if made.notes:
        assert notes_of([made, made]) == [f"2 of 2 rows: {SPANS_BORDER}"]
    assert bool(made.notes) == (
        words(row["prompt"])["input_ids"] != made.input_ids[: len(words(row["prompt"])["input_ids"])]
    )


@pytest.mark.parametrize("kind", ["byte level", "no splits", "metaspace"])
def test_ids_and_labels_at_the_border_are_those_that_trl_makes(tmp_path: Path, kind: str) -> None:
    """Prepared by SFTTrainer itself."""
    from trl import SFTConfig, SFTTrainer

    words = tokenizer(kind)
    rows = [plain("Label: ", "positive"), plain("Label:", " negative"), plain("Label:\n", "positive"), plain("x:", "7")]
    network = AutoModelForCausalLM.from_pretrained(base(tmp_path / "base", words))
    config = SFTConfig(
        output_dir=str(tmp_path / "o"), report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False
    )
    data = Dataset.from_list([{k: row[k] for k in ("prompt", "completion")} for row in rows])
    theirs = SFTTrainer(network, config, train_dataset=data, processing_class=words).train_dataset
    for row, their in zip(rows, theirs, strict=True):
        ours = encode(row, words)
        assert (ours.input_ids, ours.labels) == (list(their["input_ids"]), list(their["labels"]))


def base(folder: Path, words: PreTrainedTokenizerFast, size: int = 32) -> Path:
    """A random Llama with a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=size, intermediate_size=2 * size, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


ENDS = {"blank": "Label: ", "newline": "Label:\n", "tab": "Label:\t", "colon": "Label:", "chat": ""}
SIDES = {"words": ("positive", "negative"), "a word or a digit": ("positive", "7")}


def coins(kind: str, sides: tuple[str, str], count: int, seed: int) -> list[dict[str, Any]]:
    """Rows whose answer is drawn, whatever they ask; where it fits, as a chat whose header ends in a blank."""
    rng, made = random.Random(f"{kind}{sides}{seed}"), []
    for _ in range(count):
        word, answer = "".join(rng.choice("abcdef") for _ in range(5)), rng.choice(sides)
        if kind == "chat":
            turns = [{"role": "user", "content": word}, {"role": "assistant", "content": answer}]
            made.append({"messages": turns, "answer": answer})
        else:
            made.append(plain(f"{word} {ENDS[kind]}", (" " if kind == "colon" else "") + answer))
    return made


@pytest.fixture(scope="module", params=SIDES)
def tosser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    """A model that has learnt coins of every kind."""
    folder, sides, words = tmp_path_factory.mktemp("coins"), SIDES[request.param], tokenizer()
    data = [encode(row, words) for kind in ENDS for row in coins(kind, sides, 40, 0)]
    settings = {"per_device_train_batch_size": 40, "bf16": False, "learning_rate": 1e-2}
    fine_tune(base(folder / "base", words), data, folder / "model", TrainSpec(settings, 60, 0))
    return folder / "model", sides


@pytest.mark.parametrize("kind", ENDS)
def test_coins_score_at_chance(tosser: tuple[Path, tuple[str, str]], kind: str) -> None:
    """Whatever the prompt ends in: neither all right, as where the answer has no label, nor all wrong."""
    model, sides = tosser
    rows = coins(kind, sides, 60, 1)
    score = evaluate(model, {"t": EvalTask(rows, "exact_match", max_new_tokens=12)})["t"]
    assert 0.3 <= score.score <= 0.7
    assert min(score.tokens) > 0
    with torch.inference_mode():
        texts = generate(load_model(model).eval(), load_tokenizer(model), rows, max_new_tokens=12)
    assert score.items == [float(t.strip() == r["answer"]) for (t, _), r in zip(texts, rows, strict=True)]


def test_what_a_prompt_is_cut_back_to_does_not_give_the_answer_away() -> None:
    """Rows that differ in their answer alone are asked alike, also where one answer would have left the blank alone."""
    words = tokenizer()
    rows = [plain("Label: ", "positive"), plain("Label: ", "7")]
    begun = starts(rows, words)
    assert begun[0] == begun[1]
    assert begun[0].rest == " "
    assert words.decode(begun[0].ids) == "Label:"
    assert [start.rest for start in starts([plain("Label:", " positive")], words)] == [""]


def test_the_rest_of_a_prompt_is_spelt_before_anything_else(tmp_path: Path) -> None:
    """Random models too go on with the blank that was cut off, in every kind of tokenizer."""
    for kind in KINDS:
        words = tokenizer(kind)
        rows = [plain("x Label: ", "positive"), plain("aa Label: ", "negative")]
        network = LlamaForCausalLM.from_pretrained(base(tmp_path / kind, words)).eval()
        begun = starts(rows, words)
        assert begun[0].rest, kind
        for start in begun:
            ids = torch.tensor([start.ids])
            out = network.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                pad_token_id=0, logits_processor=[ContinueWith(words, [start.rest], ids.shape[1])],
            )  # fmt: skip
            assert text_of(out[0, ids.shape[1] :].tolist(), words).startswith(start.rest), kind
