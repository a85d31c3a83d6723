"""Tiny checkpoints, made in code: five architectures by transformers, or any arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gpt2": GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "gemma": GemmaConfig(**SMALL, head_dim=8),
    "mistral": MistralConfig(**SMALL),
}


def model(kind: str, seed: int = 0) -> Any:
    """A random model with a little noise on every parameter, so that norms and biases are no constants."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(CONFIGS[kind])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


def family(folder: Path, kind: str, tasks: int = 2, shard: str = "1GB", quantum: float = 0.0) -> list[Path]:
    """A base, and tasks that differ from it by noise; with ``quantum`` the updates are multiples of it: ties."""
    paths = [folder / "base", *(folder / f"task{i}" for i in range(1, tasks + 1))]
    base = model(kind)
    base.save_pretrained(paths[0], max_shard_size=shard)
    for i, path in enumerate(paths[1:], start=1):
        made = model(kind)
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for parameter in made.parameters():
                noise = 1e-3 * torch.randn(parameter.shape, generator=generator)
                parameter += (noise / quantum).round() * quantum if quantum else noise
        made.save_pretrained(path, max_shard_size=shard)
    return paths


def write(folder: Path, arrays: Mapping[str, Any], shards: int = 1, config: Mapping[str, Any] | None = None) -> Path:
    """Any arrays (numpy or torch) as a checkpoint, in one file or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a for n, a in arrays.items()}
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {n: tensors[n] for n in names[i::shards]}
            save_file(part, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config or {"tie_word_embeddings": False}))
    return folder
