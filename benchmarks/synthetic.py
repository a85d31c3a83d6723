"""Synthetic Llama-shaped checkpoints: a base and tasks that differ from it as a short fine-tuning would.

python benchmarks/synthetic.py FOLDER --size 1.1B --dtype bfloat16 --tasks 3
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

# hidden, layers, intermediate, key/value width
SHAPES = {
    "tiny": (64, 2, 128, 64),
    "0.1B": (768, 8, 2048, 256),
    "0.25B": (1024, 16, 2816, 256),
    "0.4B": (1280, 18, 3712, 256),
    "0.5B": (1408, 16, 3584, 256),
    "1.1B": (2048, 22, 5632, 256),
    "2.2B": (2816, 24, 7680, 256),
}
VOCABULARY = 32000


def tensors(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an untied Llama."""
    hidden, layers, wide, kv = SHAPES[size]
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (VOCABULARY, hidden)}
    shapes["model.embed_tokens.weight"] = (VOCABULARY, hidden)
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows, columns in [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ]:
            shapes[f"{layer}{name}.weight"] = (rows, columns)
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def _drawn(seed: int, size: int, start: int) -> torch.Tensor:
    """Normal numbers from a pool that is drawn once: as many as are wanted, from a place of their own."""
    pool = _pool(seed)
    start %= len(pool)
    return pool.repeat(-(-(start + size) // len(pool)))[start : start + size]


@functools.cache
def _pool(seed: int) -> torch.Tensor:
    return torch.randn(4_000_037 - 1000 * seed, generator=torch.Generator().manual_seed(seed))


def _values(shape: tuple[int, ...], number: int, model: int) -> torch.Tensor:
    """Tensor ``number`` of the base (model 0) or of a task."""
    size = math.prod(shape)
    value = _drawn(0, size, 104_729 * number) * 0.02
    if model:
        # in proportion to the weight, so that bf16 shows most of the updates
        value *= 1 + 0.02 * _drawn(model, size, 15_485_863 * number)
    return value.reshape(shape)


def make_adapters(folder: Path, size: str, count: int, rank: int = 16) -> list[Path]:
    """Write LoRA adapters of all linear layers for the base of this size."""
    made = []
    linear = {n.removesuffix(".weight"): s for n, s in tensors(size).items() if "_proj." in n}
    for i in range(count):
        made.append(folder / f"adapter{i + 1}")
        made[-1].mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(i)
        held = {}
        for name, (rows, columns) in linear.items():
            held[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.02
            held[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.02
        save_file(held, made[-1] / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": "base"}
        targets = sorted({name.rpartition(".")[2] for name in linear})
        (made[-1] / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))
    return made


def make(folder: Path, size: str, dtype: torch.dtype, tasks: int, shards: int = 4) -> list[Path]:
    """Write ``base`` and ``task1`` … below ``folder`` where they are not there yet; return their folders."""
    hidden, layers, wide, kv = SHAPES[size]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": layers, "num_attention_heads": hidden // 64, "num_key_value_heads": kv // 64,
        "vocab_size": VOCABULARY, "tie_word_embeddings": False, "torch_dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    shapes = tensors(size)
    names = sorted(shapes)
    made = []
    for model in range(tasks + 1):
        out = folder / ("base" if model == 0 else f"task{model}")
        made.append(out)
        if (out / "config.json").is_file():
            continue
        out.mkdir(parents=True, exist_ok=True)
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            numbers = range(shard * len(names) // shards, (shard + 1) * len(names) // shards)
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                values = pool.map(lambda i, model=model: _values(shapes[names[i]], i, model).to(dtype), numbers)
                part = dict(zip((names[i] for i in numbers), values, strict=True))
            weight_map |= dict.fromkeys(part, file)
            save_file(part, out / file, metadata={"format": "pt"})
        (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (out / "config.json").write_text(json.dumps(config))
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SHAPES, default="1.1B")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--tasks", type=int, default=3)
    args = parser.parse_args()
    for path in make(args.folder, args.size, getattr(torch, args.dtype), args.tasks):
        print(path)
