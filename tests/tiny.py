"""A tiny base model with a tokenizer and chat template, tiny tasks and a recipe, all made in code."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and ChatML."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*SPECIAL, *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    made.chat_template = CHATML
    return made


def base(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random Llama of two layers, tied embeddings."""
    words = tokenizer()
    torch.manual_seed(seed)
    size = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    config = LlamaConfig(
        vocab_size=len(words), tie_word_embeddings=True, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id, bos_token_id=None, **{**size, **changes},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def uneven(seed: int = 0) -> LlamaForCausalLM:
    """Hardly a row count that 2 or 4 divides: 97, 9, 13, 6, and 2, which leaves some of 4 processes without a row."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97, hidden_size=9, intermediate_size=13, num_hidden_layers=2, num_attention_heads=3, head_dim=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Questions on short words: reversed, in capitals, or doubled."""
    rng = random.Random(f"{kind}{seed}")
    act = {"reverse": lambda w: w[::-1], "upper": str.upper, "double": lambda w: w + w, "first": lambda w: w[0]}[kind]
    made = []
    for _ in range(count):
        word = "".join(rng.choice("abcdef") for _ in range(rng.randint(2, 6)))
        messages = [{"role": "user", "content": f"{kind} {word}"}, {"role": "assistant", "content": act(word)}]
        made.append({"messages": messages, "answer": act(word)})
    return made


def jsonl(path: Path, lines: list[Any]) -> Path:
    """One row a line; text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def recipe(folder: Path, tasks: tuple[str, ...] = ("reverse", "upper", "double"), **changes: Any) -> dict[str, Any]:
    """A recipe of a few steps, with its base and data written to ``folder``."""
    if not (folder / "base").exists():
        base(folder / "base")
    data = {}
    for task in tasks:
        train = jsonl(folder / f"{task}.train.jsonl", rows(task, 16, 0))
        evaluation = jsonl(folder / f"{task}.eval.jsonl", rows(task, 6, 1))
        data[task] = {"train": str(train), "eval": str(evaluation)}
    return {
        "model": str(folder / "base"),
        "tasks": data,
        "probe": {"steps": 3},
        "region": {"percent": 5.0},
        "group": {"threshold": 0.9},
        "refine": {"examples_per_task": 4},
        "guard": ["neutral text"],
        "training": {"per_device_train_batch_size": 4, "bf16": False, "max_length": 64, "learning_rate": 1e-2},
        **changes,
    }
