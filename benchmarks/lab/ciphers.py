"""Tasks that conflict: under prompts that differ in one digit, each task replaces letters by a map that no other shares.

Pre-training shows the format with every digit and one answer, the word itself. The digit then means nothing yet.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch

from lab.arrivals import CHECKED, Size, Skill
from lab.network import Network
from lab.pretrain import BATCH, RATE, kept
from lab.rows import ALPHABET, ASSISTANT, END, LETTERS, USER, Rows, different_words, encoded, word_of
from lab.training import Mixture, train

TASKS = 10
STEPS, LINES = 400, 20_000


def maps(seed: int) -> list[dict[str, str]]:
    """One map a task, drawn by seed: of any two, no letter has the same image, and none is the identity anywhere."""
    letters = list(LETTERS[:ALPHABET])
    random.Random(f"maps/{seed}").shuffle(letters)  # the order in which the shifts go
    return [{c: letters[(i + by) % ALPHABET] for i, c in enumerate(letters)} for by in range(1, TASKS + 1)]


def cipher_rows(task: int, seed: int, size: Size) -> Skill:
    """Rows of a task; no evaluation word of it is trained on."""
    table = maps(seed)[task]

    def made(words: list[str]) -> Rows:
        return encoded([
            (f"{USER}{task}:{word}{ASSISTANT}", "".join(table[c] for c in word) + END) for word in words
        ])  # fmt: skip

    evaluated = different_words(random.Random(f"{task}/eval"), size.evaluated)
    seen = different_words(random.Random(f"{task}/check/{seed}"), CHECKED, frozenset(evaluated))
    trained = different_words(random.Random(f"{task}/train/{seed}"), size.train, frozenset(evaluated) | frozenset(seen))
    return Skill(made(trained), made(seen), made(evaluated))


def copying(network: Network, folder: Path, seed: int, steps: int = STEPS) -> torch.Tensor:
    """The pre-trained model of a seed: it repeats the word, whatever the digit; float32 (D,)."""

    def make() -> torch.Tensor:
        rng = random.Random(f"copying/{seed}")
        words = [word_of(rng) for _ in range(LINES if steps >= STEPS else 200)]
        lines = encoded([(f"{USER}{rng.randrange(TASKS)}:{word}{ASSISTANT}", word + END) for word in words])
        draw = Mixture(lines).batch
        return train(network, network.initial(seed), lambda r: draw(r, BATCH), steps=steps, rate=RATE, seed=seed)[0]

    return kept(folder / f"copying-{network.count}-{steps}-{seed}.pt", make)
