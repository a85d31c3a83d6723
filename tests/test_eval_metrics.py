"""Multiple choice, ROUGE, chrF and mathematics, against values that are made otherwise."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from cpift.data.rows import metric_of
from cpift.errors import CpiftError
from cpift.evaluation.scores import EvalTask, evaluate
from cpift.metrics import METRICS, packages
from cpift.metrics.answers import AnswerPattern
from cpift.metrics.metric import Asked
from cpift.metrics.multiple_choice import right_option
from cpift.recipe.task import Task
from cpift.train.models import load_model, load_tokenizer


def row(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}], **more}


def judged(name: str, text: str, pattern: str | None = None, **more: Any) -> float:
    """What a metric gives for a generated text."""
    return METRICS[name].judge(Asked(AnswerPattern.of(pattern)))(text, row("none", **more))


# Multiple choice


def questions() -> list[dict[str, Any]]:
    """Options of many lengths, in both forms of a row, the right one by index, letter and text."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(24):
        options = ["".join(chr(97 + c) for c in rng.integers(0, 26, size)) for size in rng.integers(1, 12, 4)]
        options = [f"{option}{at}" for at, option in enumerate(options)]
        right = int(rng.integers(4))
        answer = (right, "ABCD"[right], options[right])[i % 3]
        question = f"question {i}: "
        if i % 2:
            made.append({"prompt": question, "completion": options[right], "options": options, "answer": answer})
        else:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": options[right]}]
            made.append({"messages": turns, "choices": options, "answer": answer})
    return made


def test_multiple_choice_is_the_likeliest_option_a_character(tmp_path: Path) -> None:
    """Each option's log-likelihood computed alone, from a text written out by hand, over its characters."""
    folder = tiny.base(tmp_path / "base", initializer_range=0.3)
    rows = questions()
    got = evaluate(folder, {"t": EvalTask(rows, "multiple_choice")})["t"]
    network, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    expected, tokens = [], []
    for i, each in enumerate(rows):
        options = each.get("options") or each["choices"]
        before = f"question {i}: " if i % 2 else f"<|im_start|>user\nquestion {i}: <|im_end|>\n<|im_start|>assistant\n"
        start = tokenizer(before, add_special_tokens=False)["input_ids"]
        sums = []
        for option in options:
            own = tokenizer(option, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logs = network(input_ids=torch.tensor([start + own])).logits[0].double().log_softmax(-1)
            sums.append(sum(float(logs[len(start) + j - 1, token]) for j, token in enumerate(own)))
        best = max(range(4), key=lambda at: sums[at] / len(options[at]))
        right = options.index(each.get("completion") or each["messages"][-1]["content"])
        expected.append(float(best == right))
        tokens.append(sum(len(option) for option in options))  # one token a character
    assert got.items == expected
    assert got.tokens == tokens
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize(
    ("more", "right"),
    [
        ({"options": ["red", "blue"], "answer": 1}, 1),
        ({"options": ["red", "blue"], "answer": "blue"}, 1),
        ({"options": ["red", "blue"], "answer": "B"}, 1),
        ({"options": ["red", "blue"], "answer": 1.0}, 1),
        ({"options": ["A", "B", "C"], "answer": "B"}, 1),
        ({"options": ["B", "A"], "answer": "A"}, 1),  # an option's text comes before letters
        ({"options": [3, 4], "answer": "4"}, 1),
        ({"choices": {"text": ["red", "blue"], "label": ["1", "2"]}, "answerKey": "2"}, 1),
    ],
)
def test_the_right_option(more: dict[str, Any], right: int) -> None:
    assert right_option(row("x", **more)) == right


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"answer": 0}, "row 1 needs its options as a list"),
        ({"options": ["a"], "answer": 0}, "at least two options"),
        ({"options": ["a", "a"], "answer": 0}, "all different"),
        ({"options": ["a", "b"], "answer": 2}, "has the answer 2, which is no option"),
        ({"options": ["a", "b"], "answer": -1}, "has the answer -1"),
        ({"options": ["a", "b"], "answer": True}, "has the answer True"),
        ({"options": ["a", "b"]}, "has the answer None"),
        ({"options": [1, 2, 3], "answer": 2}, "an option and the index of another"),
    ],
)
def test_rows_without_a_right_option_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(CpiftError, match=words):
        metric_of("t", Task(train="x", eval="y", metric="multiple_choice"), [row("x", **more)])


# Texts


def subsequence(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


TEXTS = [
    ("the cat sat on the mat", "the cat lay on a mat"),
    ("a b c d", "d c b a"),
    ("same words", "same words"),
    ("nothing", "in common"),
]


@pytest.mark.parametrize(("text", "reference"), TEXTS)
def test_rouge_is_f1_of_the_longest_common_subsequence(text: str, reference: str) -> None:
    own, theirs = text.split(), reference.split()
    common = subsequence(own, theirs)
    expected = 2 * common / (len(own) + len(theirs))
    assert judged("rouge", text, answer=reference) == pytest.approx(expected)
    assert judged("rouge", text, answer=["zzz", reference]) == pytest.approx(expected)


def plain_chrf(text: str, reference: str, order: int = 6, beta: float = 2.0) -> float:
    """chrF2 as its authors write it: mean precision and recall of character n-grams, white space left out."""
    text, reference = text.replace(" ", ""), reference.replace(" ", "")
    precisions, recalls = [], []
    for n in range(1, order + 1):
        own = Counter(text[i : i + n] for i in range(len(text) - n + 1))
        theirs = Counter(reference[i : i + n] for i in range(len(reference) - n + 1))
        if own and theirs:  # orders longer than a text do not count
            common = sum((own & theirs).values())
            precisions.append(common / sum(own.values()))
            recalls.append(common / sum(theirs.values()))
    precision, recall = np.mean(precisions), np.mean(recalls)
    return float((1 + beta**2) * precision * recall / (beta**2 * precision + recall)) if precision + recall else 0.0


@pytest.mark.parametrize(("text", "reference"), TEXTS)
def test_chrf_is_that_of_its_definition(text: str, reference: str) -> None:
    expected = plain_chrf(text, reference)
    assert judged("chrf", text, answer=reference) == pytest.approx(expected, abs=1e-6)
    assert judged("chrf", f"<a>{text}</a>", r"<a>(.*)</a>", answer=reference) == pytest.approx(expected, abs=1e-6)
    assert judged("chrf", text, r"<a>(.*)</a>", answer=reference) == 0.0


def test_the_assistants_text_is_the_reference_without_an_answer() -> None:
    assert METRICS["chrf"].judge(Asked())("the words", row("the words")) == pytest.approx(1.0)
    assert METRICS["rouge"].judge(Asked())("the words", row("the words")) == 1.0
    assert metric_of("t", Task(train="x", eval="y", metric="rouge"), [row("x")]) == "rouge"


# Mathematics


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("so it is 72", "72", True),
        ("so it is 72.0", 72, True),
        ("0.5", r"\frac{1}{2}", True),
        (r"thus \boxed{\frac{2}{4}}", "1/2", True),
        ("$(x+1)^2$", "x^2+2x+1", True),
        ("$(x-1)^2$", "x^2+2x+1", False),
        ("1,072", "1072", True),
        ("71", "72", False),
        ("no result", "72", False),
        ("", "72", False),
        (r"$\sqrt{8}$", r"$2\sqrt{2}$", True),
    ],
)
def test_mathematics_that_is_equal(text: str, answer: Any, right: bool) -> None:
    """By hand."""
    assert judged("math", text, answer=answer) == float(right)


# Code

CODE = """def total(values):
    result = 0
    for value in values:
        result += value
    return result"""
NEAR = CODE.replace("result = 0", "result = 1").replace("result += value", "result += 2 * value")


@pytest.mark.parametrize("text", [CODE, NEAR, "def total(values):\n    return sum(values)", CODE[:40]])
def test_codebleu_is_that_of_its_package(text: str) -> None:
    """The package's own score of one answer and one reference; in a block of code as well."""
    from codebleu import calc_codebleu

    expected = calc_codebleu([CODE], [text], lang="python")
    assert expected["dataflow_match_score"] > 0
    assert judged("codebleu", text, answer=CODE) == pytest.approx(expected["codebleu"])
    assert judged("codebleu", f"So:\n```python\n{text}\n```\n", answer=CODE) == pytest.approx(expected["codebleu"])
    assert judged("codebleu", text, answer=["import os", CODE]) >= expected["codebleu"] - 1e-9
    assert (expected["codebleu"] == 1.0) == (text == CODE)


def test_codebleu_without_data_flow() -> None:
    """A reference without any counts 1 for that part, as in the package; an answer that has none of it does not."""
    assert judged("codebleu", "print( 1 , 2 , 3 )", answer="print( 1 , 2 , 3 )") == pytest.approx(1.0)
    assert judged("codebleu", "", answer=CODE) == 0.0
    assert judged("codebleu", "print('no')", answer=CODE) < 0.1  # the package gives 0.25 more


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"language": "cobol"}, "language cobol is none of java"),
        ({"language": "rust"}, "needs the grammar of rust; pip install 'tree-sitter-rust<0.22'"),
    ],
)
def test_codebleu_of_another_language(settings: dict[str, str], words: str) -> None:
    with pytest.raises(CpiftError, match=f"metric codebleu.*{words}"):
        metric_of("t", Task(train="x", eval="y", metric="codebleu", metric_settings=settings), [row("x")])


# Packages


@pytest.mark.parametrize(("name", "package", "extra"), [
    ("rouge", "rouge_score", "eval"), ("chrf", "sacrebleu", "eval"), ("codebleu", "codebleu", "eval"), ("math", "math_verify", "math"),
])  # fmt: skip
def test_a_package_that_is_missing_is_asked_for_before_training(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda wanted: None if wanted == package else find(wanted))
    with pytest.raises(CpiftError, match=rf"tasks\.t: metric {name} needs the package {package}.*cpift\[{extra}\]"):
        metric_of("t", Task(train="x", eval="y", metric=name), [row("x", answer="x")])
