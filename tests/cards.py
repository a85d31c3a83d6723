"""The models that recipes/cards is for: configurations as published, and the same architectures with tiny widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tiny
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PretrainedConfig, Qwen3Config

PUBLISHED: dict[str, Callable[[], PretrainedConfig]] = {
    "Qwen/Qwen3-0.6B": lambda: Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "google/gemma-3-1b-pt": lambda: Gemma3TextConfig(
        vocab_size=262144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, tie_word_embeddings=True,
    ),
    "Qwen/Qwen3-8B": lambda: Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
    ),
    "meta-llama/Llama-3.1-8B": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    ),
}  # fmt: skip
PARAMETERS = {  # as published
    "Qwen/Qwen3-0.6B": 596_049_920,
    "google/gemma-3-1b-pt": 999_885_952,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}


def tiny_config(name: str) -> PretrainedConfig:
    """The architecture of a published model, of the tests' tiny size, with their tokenizer's ids."""
    words = tiny.tokenizer()
    config = PUBLISHED[name]()
    changes: dict[str, Any] = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048,
        "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None,
        "tie_word_embeddings": config.tie_word_embeddings,
    }  # fmt: skip
    return type(config)(**changes)


def shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Of each parameter, a tied one once; no memory is taken."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count(config: PretrainedConfig) -> int:
    """Parameters, tied ones once."""
    return sum(map(math.prod, shapes(config).values()))
