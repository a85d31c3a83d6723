"""Ten small skills on words of random letters, in two suites, each as chat rows and as plain text of another format.

python benchmarks/small/skills.py FOLDER writes the rows of all skills: SKILL.train.jsonl and SKILL.eval.jsonl;
SKILL.few.jsonl has a tenth of the former.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

TRAIN, FEW, EVAL = 1000, 100, 200
LETTERS = "abcdefghijklmnopqrst"


def _word(rng: random.Random, low: int = 4, high: int = 7) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(low, high)))


def _next(letter: str, by: int) -> str:
    return LETTERS[(LETTERS.index(letter) + by) % len(LETTERS)]


def _pairs(word: str) -> str:
    """Neighbours change places; an odd last letter stays."""
    return "".join(word[i : i + 2][::-1] for i in range(0, len(word), 2))


SKILLS: dict[str, Callable[[str], str]] = {
    # the suite to explore on
    "double": lambda w: "".join(c + c for c in w),
    "ends": lambda w: w[-1] + w[0],
    "back": lambda w: "".join(_next(c, -1) for c in w),
    "skip": lambda w: w[::2],
    "rotate": lambda w: w[1:] + w[0],
    # the suite to report
    "reverse": lambda w: w[::-1],
    "sort": lambda w: "".join(sorted(w)),
    "shift": lambda w: "".join(_next(c, 1) for c in w),
    "swap": _pairs,
    "inner": lambda w: w[1:-1],
}
EXPLORE, REPORT = list(SKILLS)[:5], list(SKILLS)[5:]


def text(skill: str, rng: random.Random) -> str:
    """One line of the other format, in which a model may have met the skill before."""
    word = _word(rng)
    return f"{skill}({word})={SKILLS[skill](word)};\n"


def rows(skill: str, count: int, seed: str, avoid: AbstractSet[str] = frozenset()) -> list[dict[str, Any]]:
    """Chat rows, all different, none of whose words is in ``avoid``."""
    rng = random.Random(f"{skill}/{seed}")
    made: dict[str, dict[str, Any]] = {}
    while len(made) < count:
        word = _word(rng)
        if word not in avoid:
            answer = SKILLS[skill](word)
            made[word] = {
                "messages": [
                    {"role": "user", "content": f"{skill}: {word}"},
                    {"role": "assistant", "content": answer},
                ],
                "answer": answer,
            }
    return list(made.values())


def write(folder: Path) -> None:
    """All rows as files; no question of the evaluation is trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    for skill in SKILLS:
        evaluation = rows(skill, EVAL, "eval")
        asked = {row["messages"][0]["content"].split(": ")[1] for row in evaluation}
        training = rows(skill, TRAIN, "train", asked)
        for part, made in (("eval", evaluation), ("train", training), ("few", training[:FEW])):
            lines = "".join(json.dumps(row) + "\n" for row in made)
            (folder / f"{skill}.{part}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
