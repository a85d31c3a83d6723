"""Tiny models of four architectures, and LoRA adapters on them by PEFT, random in every part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen3Config,
)

SMALL: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "head_dim": 6, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL, attention_bias=True),
    "qwen3": Qwen3Config(**SMALL),
    "gemma3": Gemma3TextConfig(**SMALL),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=40, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, tie_word_embeddings=False,
    ),
    "gpt2": GPT2Config(vocab_size=40, n_embd=24, n_inner=24, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=False),
}  # fmt: skip


def base(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random model, all parameters with noise."""
    torch.manual_seed(0)
    config = type(CONFIGS[kind])(**{**CONFIGS[kind].to_dict(), **changes})
    model = AutoModelForCausalLM.from_config(config)
    noisy(model.parameters())
    model.to(dtype).save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, seed: int = 1, size: float = 0.05, **settings: Any) -> Path:
    """A LoRA adapter of random weights on the base, saved by PEFT."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = get_peft_model(
        model, LoraConfig(**{"r": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})
    )
    noisy((p for p in wrapped.parameters() if p.requires_grad), size)
    wrapped.save_pretrained(folder)
    return folder


def noisy(parameters: Any, size: float = 0.05) -> None:
    """Add noise to each of the parameters."""
    with torch.no_grad():
        for parameter in parameters:
            parameter += size * torch.randn_like(parameter)


def merged(adapter: Path, base: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model that PEFT makes of the two."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()
