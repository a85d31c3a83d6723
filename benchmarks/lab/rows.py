"""Rows of the ten skills as characters, in the tasks' format, and lines of the pre-training text in another one."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "small"))
from skills import EXPLORE, LETTERS, REPORT, SKILLS

__all__ = [
    "EXPLORE",
    "LETTERS",
    "REPORT",
    "SKILLS",
    "Rows",
    "joined",
    "pretraining_lines",
    "task_rows",
    "vocabulary_size",
]

USER, ASSISTANT, END = "<", ">", "."
CHARACTERS = "~" + USER + ASSISTANT + END + "abcdefghijklmnopqrstuvwxyz0123456789 ,:;=()"  # "~" is padding
ALPHABET, LENGTHS = 12, (3, 5)  # letters that words have, and how many
_IDS = {character: i for i, character in enumerate(CHARACTERS)}
_NOUNS = ("river", "house", "stone", "bird", "table", "lamp", "garden", "friend", "letter", "road", "window", "clock")
_VERBS = ("finds", "sees", "keeps", "paints", "carries", "opens", "leaves", "follows", "builds", "hides")


@dataclass(frozen=True)
class Rows:
    """Rows of equal length.

    Attributes:
        ids: characters, int64 (rows, length), padded at the end.
        counted: whether a character is to be predicted, bool (rows, length).
    """

    ids: torch.Tensor
    counted: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: torch.Tensor) -> Rows:
        """Some rows, cut to the longest of them."""
        ids, counted = self.ids[index], self.counted[index]
        length = int((ids != 0).sum(1).max())
        return Rows(ids[:, :length], counted[:, :length])


def vocabulary_size() -> int:
    """Number of characters, padding among them."""
    return len(CHARACTERS)


def encoded(lines: list[tuple[str, str]], device: str = "cpu") -> Rows:
    """Pairs of a prompt and what is to be predicted after it."""
    length = max(len(prompt) + len(answer) for prompt, answer in lines)
    ids = torch.zeros(len(lines), length, dtype=torch.int64)
    counted = torch.zeros(len(lines), length, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(lines):
        whole = prompt + answer
        ids[i, : len(whole)] = torch.tensor([_IDS[c] for c in whole])
        counted[i, len(prompt) : len(whole)] = True
    return Rows(ids.to(device), counted.to(device))


def joined(parts: list[Rows]) -> Rows:
    """Several sets of rows as one."""
    length = max(part.ids.shape[1] for part in parts)
    pad = [(0, length - part.ids.shape[1]) for part in parts]
    ids = torch.cat([torch.nn.functional.pad(part.ids, p) for part, p in zip(parts, pad, strict=True)])
    counted = torch.cat([torch.nn.functional.pad(part.counted, p) for part, p in zip(parts, pad, strict=True)])
    return Rows(ids, counted)


def word_of(rng: random.Random) -> str:
    """A word at random."""
    return "".join(rng.choice(LETTERS[:ALPHABET]) for _ in range(rng.randint(*LENGTHS)))


def different_words(rng: random.Random, count: int, avoid: frozenset[str] = frozenset()) -> list[str]:
    """Words at random, none twice and none of ``avoid``."""
    words: dict[str, None] = {}
    while len(words) < count:
        word = word_of(rng)
        if word not in avoid:
            words[word] = None
    return list(words)


def task_rows(skill: str, count: int, seed: str, avoid: frozenset[str] = frozenset()) -> tuple[list[str], Rows]:
    """Different rows of a skill, as ``<sort:dcba>abcd.``; none of whose words is in ``avoid``.

    Returns:
        The words asked about, and the rows.
    """
    words = different_words(random.Random(f"{skill}/{seed}"), count, avoid)
    lines = [(f"{USER}{skill}:{word}{ASSISTANT}", SKILLS[skill](word) + END) for word in words]
    return words, encoded(lines)


def pretraining_lines(count: int, seed: str) -> Rows:
    """Lines of the pre-training text: four in five show a skill, as ``sort(dcba)=abcd;``; all characters count."""
    rng, names = random.Random(f"text/{seed}"), list(SKILLS)
    lines = []
    for _ in range(count):
        word, noun, name = word_of(rng), rng.choice(_NOUNS), rng.choice(names)
        if rng.random() < 0.8:
            line = f"{name}({word})={SKILLS[name](word)};"
        else:
            line = rng.choice([
                f"the {noun} {rng.choice(_VERBS)} the {rng.choice(_NOUNS)};",
                f"list: {noun}, {rng.choice(_NOUNS)}, {rng.randint(1, 999)};",
                f"the word {word} is {word};",
                f"{USER}say:{word}{ASSISTANT}{word}{END}",
            ])  # fmt: skip
        lines.append((line[0], line[1:]))
    return encoded(lines)
