"""Ten small skills on letters and digits, in two suites, each as chat rows and as plain text of another format.

python benchmarks/small/skills.py FOLDER writes the rows of all skills: SKILL.train.jsonl and SKILL.eval.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

TRAIN, EVAL = 1000, 200
LETTERS = "abcdefghijklmnopqrst"


def _word(rng: random.Random, low: int = 4, high: int = 7) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(low, high)))


def _number(rng: random.Random, low: int = 10, high: int = 999) -> int:
    return rng.randint(low, high)


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = _number(rng), _number(rng)
    return f"{a} {b}", str(a + b)


def _subtract(rng: random.Random) -> tuple[str, str]:
    a, b = sorted((_number(rng), _number(rng)), reverse=True)
    return f"{a} {b}", str(a - b)


def _multiply(rng: random.Random) -> tuple[str, str]:
    a, b = _number(rng), rng.randint(2, 9)
    return f"{a} {b}", str(a * b)


def _of_word(act: Callable[[str], str]) -> Callable[[random.Random], tuple[str, str]]:
    def make(rng: random.Random) -> tuple[str, str]:
        word = _word(rng)
        return word, act(word)

    return make


def _shift(word: str) -> str:
    return "".join(LETTERS[(LETTERS.index(c) + 1) % len(LETTERS)] for c in word)


def _largest(rng: random.Random) -> tuple[str, str]:
    numbers = [_number(rng) for _ in range(4)]
    return " ".join(map(str, numbers)), str(max(numbers))


SKILLS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    # the suite to explore on
    "subtract": _subtract,
    "double": _of_word(lambda w: "".join(c + c for c in w)),
    "ends": _of_word(lambda w: w[-1] + w[0]),
    "largest": _largest,
    "back": _of_word(lambda w: "".join(LETTERS[LETTERS.index(c) - 1] for c in w)),
    # the suite to report
    "add": _add,
    "reverse": _of_word(lambda w: w[::-1]),
    "sort": _of_word(lambda w: "".join(sorted(w))),
    "shift": _of_word(_shift),
    "multiply": _multiply,
}
EXPLORE, REPORT = list(SKILLS)[:5], list(SKILLS)[5:]


def text(skill: str, rng: random.Random) -> str:
    """One line of the other format, in which a model may have met the skill before."""
    question, answer = SKILLS[skill](rng)
    return f"{skill}({question.replace(' ', ',')})={answer};\n"


def rows(skill: str, count: int, seed: str, avoid: set[str] = frozenset()) -> list[dict]:  # type: ignore[assignment]
    """Chat rows, all different, none of whose questions is in ``avoid``."""
    rng, made = random.Random(f"{skill}/{seed}"), {}
    while len(made) < count:
        question, answer = SKILLS[skill](rng)
        if question not in avoid:
            made[question] = {
                "messages": [
                    {"role": "user", "content": f"{skill}: {question}"},
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
        for part, made in (("eval", evaluation), ("train", rows(skill, TRAIN, "train", asked))):
            lines = "".join(json.dumps(row) + "\n" for row in made)
            (folder / f"{skill}.{part}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
