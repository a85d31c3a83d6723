"""The architectures that people tune most today, as configurations of one or two layers. No fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

_WORDS = tiny.tokenizer()
_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": _WORDS.eos_token_id, "pad_token_id": _WORDS.pad_token_id}
_V = {"vocab_size": len(_WORDS), **_IDS}
_DENSE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128,
}  # fmt: skip
_HEAD = {**_DENSE, "head_dim": 8}
_LATENT = {
    "num_hidden_layers": 2, "num_key_value_heads": 2, "moe_intermediate_size": 12, "n_shared_experts": 1,
    "n_routed_experts": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "qk_nope_head_dim": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip

Make = Callable[[], PretrainedConfig]


def _of(kind: str, *parts: dict[str, Any], **more: Any) -> Make:
    settings: dict[str, Any] = {}
    for part in parts:
        settings |= part
    return lambda: getattr(transformers, kind)(**settings, **more)


# As docs/models.md lists them.
SUPPORTED: dict[str, Make] = {
    "llama": _of("LlamaConfig", _V, _DENSE),
    "qwen2": _of("Qwen2Config", _V, _DENSE, tie_word_embeddings=True),
    "qwen3": _of("Qwen3Config", _V, _HEAD),
    "mistral": _of("MistralConfig", _V, _DENSE),
    "gemma2": _of("Gemma2Config", _V, _HEAD),
    "gemma3_text": _of("Gemma3TextConfig", _V, _HEAD),
    "gemma3": _of(
        "Gemma3Config", _IDS, text_config={**_V, **_HEAD}, vision_config=_VISION, mm_tokens_per_image=4,
        boi_token_index=5, eoi_token_index=6, image_token_index=7,
    ),
    "phi3": _of("Phi3Config", _V, _DENSE),
    "olmo2": _of("Olmo2Config", _V, _DENSE),
    "gpt2": _of("GPT2Config", _V, n_positions=128, n_embd=16, n_layer=1, n_head=2),
    "gpt_neox": _of(
        "GPTNeoXConfig", _V, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128,
    ),
    "mixtral": _of("MixtralConfig", _V, _DENSE, num_local_experts=4),
    "qwen3_moe": _of(
        "Qwen3MoeConfig", _V, _HEAD, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
    ),
    "gpt_oss": _of("GptOssConfig", _V, _HEAD, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": _of("DeepseekV3Config", _V, _DENSE, _LATENT),
    "mamba": _of("MambaConfig", _V, hidden_size=16, state_size=4, num_hidden_layers=1),
}  # fmt: skip
# Whose names or shapes on disk are not those in memory, so that positions are converted.
CONVERTED = ["gemma3", "gpt_neox", "mixtral", "qwen3_moe", "deepseek_v3"]


def network(kind: str, seed: int = 0) -> Any:
    """A random model, all of whose parameters and buffers have values of their own."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(SUPPORTED[kind]())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for name, buffer in made.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer += 0.1 * torch.randn_like(buffer)
    return made


def base(folder: Path, kind: str) -> Path:
    """A random model with the tokenizer of tests/tiny.py."""
    network(kind).save_pretrained(folder)
    _WORDS.save_pretrained(folder)
    return folder
