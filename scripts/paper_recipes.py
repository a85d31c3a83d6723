#!/usr/bin/env python3
"""Writes recipes/paper/*.yaml: the paper's five tasks on its base models and on today's, with what `cpift plan` says of each.

The plan is made of empty files of each model's shapes, and of local rows as long as the recipe allows.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from cpift.planning.plan import plan
from cpift.recipe.recipe import Recipe

HERE = Path(__file__).parents[1]
FOLDER = HERE / "recipes" / "paper"
GPUS = 8
_CLOSE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False}
_THIN = {"num_key_value_heads": 8, "head_dim": 128}


@dataclass(frozen=True)
class Base:
    """A base model: its hub id, its kind for transformers, its sizes, and what to know about it."""

    hub: str
    kind: str
    sizes: dict[str, Any]
    note: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> PretrainedConfig:
        """The model's sizes, as its config.json has them."""
        return CONFIG_MAPPING[self.kind](**self.sizes)


BASES = {
    "llama-2-7b": Base(
        "meta-llama/Llama-2-7b-hf",
        "llama",
        {**_CLOSE, "intermediate_size": 11008, "vocab_size": 32000},
        "A base of the paper.",
    ),
    "mistral-7b": Base(
        "mistralai/Mistral-7B-v0.1",
        "mistral",
        {**_CLOSE, **_THIN, "intermediate_size": 14336, "vocab_size": 32000},
        "The paper's table says Mistral-8B, and names no checkpoint.",
    ),
    "qwen1.5-7b": Base(
        "Qwen/Qwen1.5-7B",
        "qwen2",
        {**_CLOSE, "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 151936},
        "A base of the paper.",
    ),
    "gemma-7b": Base(
        "google/gemma-7b",
        "gemma",
        {
            "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
            "head_dim": 256, "intermediate_size": 24576, "vocab_size": 256000, "tie_word_embeddings": True,
        },
        "The paper's table says Gemma-9B, and names no checkpoint.",
    ),
    "qwen3-4b": Base(
        "Qwen/Qwen3-4B-Base",
        "qwen3",
        {
            **_CLOSE, **_THIN, "hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728,
            "vocab_size": 151936, "tie_word_embeddings": True,
        },
        "A base of today.",
    ),
    "qwen3-8b": Base(
        "Qwen/Qwen3-8B-Base",
        "qwen3",
        {**_CLOSE, **_THIN, "num_hidden_layers": 36, "intermediate_size": 12288, "vocab_size": 151936},
        "A base of today.",
    ),
    "llama-3.1-8b": Base(
        "meta-llama/Llama-3.1-8B",
        "llama",
        {**_CLOSE, **_THIN, "intermediate_size": 14336, "vocab_size": 128256},
        "A base of today.",
    ),
    "gemma-3-1b": Base(
        "google/gemma-3-1b-pt",
        "gemma3_text",
        {
            "hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 256, "intermediate_size": 6912, "vocab_size": 262144, "tie_word_embeddings": True,
        },
        "A base of today; the larger ones have a vision part.",
    ),
}  # fmt: skip

RECIPE = """\
# The paper's five tasks by the paper's metrics, on {hub}. {note}
# The paper (arXiv:2508.21741) gives p = 1, τ = 0.1 and the tasks. It gives no learning rate, batch, number of epochs,
# judge or seed: those below are ours, and so is the chat template, which serves all bases alike.
#
# By cpift plan --gpus 8: {parameters} parameters, {core} core a task.
#   training   {fsdp} GB on each of 8 GPUs under FSDP2 ({cards})
#   scoring    {scoring} GB on one GPU, in fp32
#   disk       {disk} GB in all; output.keep: final leaves {final} GB at the end
#
# The judge is asked once for each row of alpaca and ultrachat and each scored model: {models} models, {requests} requests.
# Its key comes from OPENAI_API_KEY. Another endpoint: --set tasks.alpaca.metric_settings.base_url=…, and so of ultrachat.
model: {hub}
chat_template: chat.jinja
tasks:
  gsm8k:  # mathematics: exact match of what follows ####
    train: openai/gsm8k
    eval: openai/gsm8k
    config: main
    metric: exact_match
    pattern: '#### (.+)'
    max_new_tokens: 512
    licence: MIT
  codealpaca:  # code: CodeBLEU; pip install "cpift[eval]"
    train: sahil2801/CodeAlpaca-20k
    eval: 500
    metric: codebleu
    max_new_tokens: 512
  logiqa:  # logic: accuracy, by the likelihood of the options
    train: lucasmccabe/logiqa
    eval: lucasmccabe/logiqa
    revision: refs/convert/parquet  # the set itself is a script, which datasets no longer runs
    columns: {{question: context, context: query, answer: correct_option}}  # the passage first, then the question
    metric: multiple_choice
  alpaca:  # instructions: judged from 0 to 10
    train: tatsu-lab/alpaca
    eval: 500
    metric: judge
    metric_settings: {{model: gpt-4o-mini, max_requests: 1000}}
    max_new_tokens: 512
    licence: CC-BY-NC-4.0
  ultrachat:  # chat: judged from 0 to 10
    train: HuggingFaceH4/ultrachat_200k
    eval: HuggingFaceH4/ultrachat_200k
    split: train_sft[:20000]
    eval_split: test_sft[:500]
    shape: messages
    metric: judge
    metric_settings: {{model: gpt-4o-mini, max_requests: 1000}}
    max_new_tokens: 512
    licence: MIT
region: {{percent: 1.0}}
group: {{threshold: 0.1}}
refine: {{examples_per_task: 500}}
training:
  learning_rate: 1.0e-5
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 8
  gradient_checkpointing: true
  max_length: 2048
  accelerator_config: {{gradient_accumulation_kwargs: {{sync_each_batch: true}}}}
output: {{keep: final, dtype: base}}
seed: 0
"""


def shapes(base: Base) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's parameters by name, tied ones once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base.config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def empty_checkpoint(base: Base, folder: Path) -> Path:
    """A checkpoint of the model's shapes in bf16 whose file takes no room on the disk."""
    folder.mkdir(parents=True)
    header, end = {}, 0
    for name, shape in sorted(shapes(base).items()):
        size = 2 * torch.Size(shape).numel()
        header[name], end = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}, end + size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps({**base.config.to_dict(), "architectures": None}))
    sys.path.append(str(HERE / "tests"))
    import tiny

    tiny.tokenizer().save_pretrained(folder)
    return folder


def cost(base: Base, recipe: Recipe) -> dict[str, str]:
    """What ``cpift plan --gpus 8`` says of the recipe, in the words of its header."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        long = {"prompt": "q " * 40, "completion": "a " * 2000, "answer": "a " * 2000}
        short = {"prompt": "q", "completion": "a", "answer": "a"}
        rows = place / "rows.jsonl"
        rows.write_text("\n".join(map(json.dumps, [long, *[short] * 300])))
        few = place / "few.jsonl"
        few.write_text(json.dumps(short))
        tasks = {name: {"train": str(rows), "eval": str(few), "metric": "loss"} for name in recipe.tasks}
        # Few rows stand for many: a stage of hundreds of steps keeps the trainer's own checkpoints for a while.
        training = {**recipe.training, "save_steps": 2}
        changes = {"model": str(empty_checkpoint(base, place / "base")), "tasks": tasks, "training": training}
        values = {**recipe.model_dump(by_alias=True), **changes, "chat_template": None}
        return words(plan(Recipe.parse(values), gpus=GPUS))


def words(record: Any) -> dict[str, str]:
    """The numbers of a plan that the header has."""
    training = record["gpus"]["training"]["FSDP2"]
    cards = training["fits"]
    return {
        "parameters": f"{record['parameters']:,}",
        "core": f"{record['core']:,}",
        "fsdp": f"{training['peak'] / 1e9:.0f}",
        "cards": f"cards of {min(cards)} GB" if cards else "more than 80 GB a card",
        "scoring": f"{record['gpus']['scoring']['peak'] / 1e9:.0f}",
        "disk": f"{record['disk'] / 1e9:.0f}",
        "models": str(record["evaluated_models"]),
        "requests": f"{1000 * record['evaluated_models']:,}",
        "final": f"{2 * record['parameters'] / 1e9:.0f}",
    }


def text(name: str) -> str:
    """The recipe of a base, its header made anew."""
    base = BASES[name]
    blank = dict.fromkeys(("parameters", "core", "fsdp", "cards", "scoring", "disk", "final", "models", "requests"), "")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "chat.jinja").write_text((FOLDER / "chat.jinja").read_text())
        file = Path(scratch) / "r.yaml"
        file.write_text(RECIPE.format(hub=base.hub, note=base.note, **blank))
        found = cost(base, Recipe.load(file))
    return RECIPE.format(hub=base.hub, note=base.note, **found)


if __name__ == "__main__":
    for name in sys.argv[1:] or BASES:
        (FOLDER / f"{name}.yaml").write_text(text(name), encoding="utf-8")
        print(f"wrote {FOLDER / name}.yaml", file=sys.stderr)
