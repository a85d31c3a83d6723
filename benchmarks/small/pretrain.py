"""Pre-train the small model: a Llama of 5.2 million parameters, one token a byte, on generated text, fixed seed.

python benchmarks/small/pretrain.py FOLDER --kind elicitation
  new:          the text has words, lists and small talk, but nothing like the skills.
  elicitation:  most of it has the ten skills, in another format than the tasks ask in.
Writes FOLDER/KIND, a Hugging Face checkpoint, with quality.json: the loss on unseen text, and how often the skills are
done right in the format of the text.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
from skills import LETTERS, SKILLS, text

SPECIAL = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BLOCK, BATCH, RATE = 128, 8, 1e-3
NOUNS = (
    "river", "house", "stone", "bird", "table", "lamp", "garden", "friend", "letter", "road", "window", "clock",
    "bridge", "tree", "song", "boat",
)  # fmt: skip
VERBS = (
    "finds",
    "sees",
    "keeps",
    "paints",
    "carries",
    "opens",
    "leaves",
    "follows",
    "builds",
    "hides",
    "moves",
    "likes",
)
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "grey", "brown")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, one for each turn of a chat."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*SPECIAL, *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    made.chat_template = CHAT
    return made


def plain_text(rng: random.Random) -> str:
    """A sentence, a list, a word spelt or repeated, or a turn of small talk."""
    noun, verb, other, colour = rng.choice(NOUNS), rng.choice(VERBS), rng.choice(NOUNS), rng.choice(COLOURS)
    word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 7)))
    talk = rng.choice([f"the {colour} {noun}", word, f"{rng.randint(1, 999)} {other}s"])
    return rng.choice([
        f"the {colour} {noun} {verb} the {other}.\n",
        f"list: {noun}, {other}, {colour}, {rng.randint(1, 999)};\n",
        f"the word {word} is {word}.\n",
        f"<|user|>say: {talk}<|end|><|assistant|>{talk}<|end|>\n",
    ])  # fmt: skip


def corpus(kind: str, rng: random.Random, characters: int) -> str:
    """Generated text of about so many characters."""
    parts, size = [], 0
    while size < characters:
        skilled = kind == "elicitation" and rng.random() < 0.7
        parts.append(text(rng.choice(list(SKILLS)), rng) if skilled else plain_text(rng))
        size += len(parts[-1])
    return "".join(parts)


def blocks(words: PreTrainedTokenizerFast, source: str) -> torch.Tensor:
    ids = words(source, add_special_tokens=False)["input_ids"]
    count = len(ids) // BLOCK
    return torch.tensor(ids[: count * BLOCK]).reshape(count, BLOCK)


def accuracy(model: LlamaForCausalLM, words: PreTrainedTokenizerFast, seed: int = 1) -> dict[str, float]:
    """How often each skill is done right in the format of the text: every character of the answer is the argmax."""
    found = {}
    for skill in SKILLS:
        rng, right = random.Random(f"{skill}{seed}"), 0
        for _ in range(100):
            line = text(skill, rng)
            ids = torch.tensor([words(line, add_special_tokens=False)["input_ids"]])
            with torch.inference_mode():
                best = model(input_ids=ids).logits[0, :-1].argmax(-1)
            start = line.index("=")  # one token a character
            right += bool((best[start:-1] == ids[0, start + 1 : -1]).all())
        found[skill] = right / 100
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=["new", "elicitation"], default="elicitation")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; the published models are a CPU's")
    args = parser.parse_args()
    torch.manual_seed(0)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=256, tie_word_embeddings=True, attention_bias=True,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(args.device)
    rng = random.Random(0)
    unseen = blocks(words, corpus(args.kind, random.Random(1), 60_000))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, betas=(0.9, 0.98), fused=True)
    began, total = time.perf_counter(), 0.0
    data, used = torch.empty(0, BLOCK, dtype=torch.int64), 0
    for step in range(1, args.steps + 1):
        if used + BATCH > len(data):
            data, used = blocks(words, corpus(args.kind, rng, 500_000)), 0
            data = data[torch.randperm(len(data))]
        batch, used = data[used : used + BATCH].to(args.device), used + BATCH
        warm, rest = min(1.0, step / 100), 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm * (0.05 + 0.95 * rest)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if step % 100 == 0:
            speed = step * BATCH * BLOCK / (time.perf_counter() - began)
            print(f"step {step} of {args.steps}, loss {total / 100:.3f}, {speed:.0f} tokens/s", flush=True)
            total = 0.0
    seconds = time.perf_counter() - began
    model.eval().cpu()
    with torch.inference_mode():
        losses = [model(input_ids=part, labels=part).loss.item() for part in unseen.split(BATCH)]
    out = args.folder / args.kind
    model.save_pretrained(out)
    words.save_pretrained(out)
    quality = {
        "parameters": sum(p.numel() for p in model.parameters()), "steps": args.steps,
        "tokens": args.steps * BATCH * BLOCK, "seconds": seconds, "loss_on_unseen_text": sum(losses) / len(losses),
        "skills_in_the_text_format": accuracy(model, words),
    }  # fmt: skip
    (out / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
    print(json.dumps(quality, indent=1))


if __name__ == "__main__":
    main()
