"""Models and rows for the steps: those that are given, or random ones of the same shape."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from step import Skip, Step, need

Row = dict[str, Any]
# SmolLM2-135M's shape, with the tiny tokenizer's words at the front of its vocabulary.
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
}  # fmt: skip
# The most of each in a small copy.
SMALL = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
LETTERS = (64, 320)  # of a made row, the fewest and the most


def model_folder(step: Step) -> Path:
    """The given model as a folder; else a random one of SmolLM2-135M's shape, or the tests' tiny one.

    It is made once, for all steps.
    """
    if step.model is not None and step.model.is_dir():
        return step.model
    if step.model is not None:
        gguf = step.model
        return _once(step.scratch / "model", lambda out: _convert(gguf, out))
    return _once(step.scratch / "model", lambda out: _random(out, step.tiny))


def small_copy(step: Step) -> Path:
    """A random model of the given one's architecture, two narrow layers deep, with its tokenizer. Made once, for all steps."""
    given = step.given_model
    assert given is not None
    need("transformers:AutoConfig", *(["gguf"] if given.suffix == ".gguf" else []))
    place = step.results or step.scratch  # where it stays, for a call that resumes
    return _once(place / f"small-{given.stem}", lambda out: _small(given, out))


def _small(given: Path, out: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where, gguf = (given, {}) if given.is_dir() else (given.parent, {"gguf_file": given.name})
    config = AutoConfig.from_pretrained(where, **gguf)
    inner = config.get_text_config()
    for key, most in SMALL.items():
        if isinstance(held := getattr(inner, key, None), int):
            setattr(inner, key, min(held, most))
    if getattr(inner, "layer_types", None):
        inner.layer_types = inner.layer_types[: SMALL["num_hidden_layers"]]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(where, **gguf).save_pretrained(out)


def model_name(step: Step) -> str:
    """In a few words, for the table."""
    if step.model is not None:
        return step.model.name
    return "the tests' tiny model" if step.tiny else "a random model of SmolLM2-135M's shape"


def model_needs(step: Step) -> list[str]:
    """Libraries that the given model needs beyond the others."""
    return ["gguf"] if step.model is not None and step.model.suffix == ".gguf" else []


def _convert(file: Path, out: Path) -> None:
    need("gguf")
    from cpift.train.models import convert_gguf

    convert_gguf(file, out)


def _random(out: Path, tiny: bool) -> None:
    import tiny as made
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if tiny:
        made.base(out)
        return
    words = made.tokenizer()
    torch.manual_seed(0)
    ends = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **ends, **SHAPE)).save_pretrained(out)
    words.save_pretrained(out)


def _once(place: Path, make: Callable[[Path], None]) -> Path:
    """``place``, made by the first step that asks; a step that was killed while making it leaves no half of it."""
    if not place.is_dir():
        partial = place.with_name(f"{place.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        partial.rename(place)
    return place


def set_names(step: Step, count: int = 2) -> list[str]:
    """The sets to take: those that are asked for, else the first ones, ``count`` at most.

    Sets whose rows are scored as they stand come first. Raises :class:`Skip` where there are fewer than two.
    """
    if step.data is None:
        raise Skip("needs --data, which was not given")
    usable = sorted(f.parent.name for f in step.data.glob("*/train.jsonl") if (f.parent / "eval.jsonl").is_file())
    plain = {name for name in usable if not step.sets and has_plain_answers(step.data / name)}
    names = step.sets or sorted(usable, key=lambda name: (name not in plain, name))[:count]
    if len(names) < 2:
        raise Skip(f"needs two sets; {step.data} holds {len(usable)} with train.jsonl and eval.jsonl")
    return names


def read_rows(file: Path, count: int) -> list[Row]:
    """The first rows of a file, drawn evenly over it."""
    with file.open(encoding="utf-8") as lines:
        rows: list[Row] = [json.loads(line) for line in lines if line.strip()]
    return rows[:: max(1, len(rows) // count)][:count]


def has_plain_answers(folder: Path) -> bool:
    """Is the assistant's text the answer in each of the first rows? Then no pattern is needed to score it."""
    rows = read_rows(folder / "eval.jsonl", 20)
    return all(assistant_text(row).strip() == str(row.get("answer")).strip() for row in rows)


def assistant_text(row: Row) -> str:
    """What the last turn of a row says."""
    turns = row["messages"] if "messages" in row else row["completion"]
    return str(turns if isinstance(turns, str) else turns[-1]["content"])


def some_rows(step: Step, count: int) -> list[Row]:
    """Rows whose answer is the assistant's text: of the first set that is given, else made. Repeated to be ``count``."""
    rows: list[Row] = []
    if step.data is not None:
        name = set_names(step)[0]
        rows = read_rows(step.data / name / "train.jsonl", count)
        # The table is about speed, so that any text is as good an answer.
        rows = [{**row, "answer": assistant_text(row)} for row in rows]
    else:
        rows = [_made(random.Random(i), (4, 12) if step.tiny else LETTERS) for i in range(count)]
    return (rows * -(-count // len(rows)))[:count]


def _made(rng: random.Random, letters: tuple[int, int]) -> Row:
    text = "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(*letters))).strip() or "a"
    answer = text[: len(text) // 2 + 1].strip() or "a"
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}], "answer": answer}
