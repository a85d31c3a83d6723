"""CodeBLEU: n-grams, keywords, syntax and data flow of code against references, by the package codebleu.

Ren et al., 2020, arXiv:2009.10297; each of the four parts weighs a quarter.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from cpift.metrics.answers import Row, references_or_response
from cpift.metrics.metric import Asked, Judge, Metric, Scoring
from cpift.metrics.packages import load, missing
from cpift.metrics.settings import MetricSettings

_PARTS = ("ngram_match_score", "weighted_ngram_match_score", "syntax_match_score")
_BLOCK = re.compile(r"^[ \t]*```[\w+#-]*[ \t]*\r?\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


class CodeBleuSettings(MetricSettings):
    """Settings of ``codebleu``."""

    language: str = "python"
    """Language of the code: python, or one whose grammar is installed as tree-sitter-LANGUAGE."""


def _judge(asked: Asked) -> Judge:
    language, pattern = asked.chosen(CodeBleuSettings).language, asked.pattern
    package = load("codebleu", "eval")

    def parts(reference: str, answer: str) -> dict[str, float]:
        with _without_warnings():
            values: dict[str, float] = package.calc_codebleu([reference], [answer], lang=language)
        return values

    def judge(text: str, row: Row) -> float:
        answer = _code(text) if pattern is None else pattern.find(text)
        if answer is None or not answer.strip():
            return 0.0
        wanted = [_code(reference) for reference in references_or_response(row, pattern)]
        return max(_score(parts(reference, answer), parts(reference, reference)) for reference in wanted)

    return judge


def _code(text: str) -> str:
    """The last block of code within a text, else the whole text."""
    blocks = _BLOCK.findall(text)
    return str(blocks[-1]) if blocks else text


def _score(values: dict[str, float], own: dict[str, float]) -> float:
    """The mean of the four parts.

    The package takes a data flow that matches nowhere for one that the reference does not have, which counts as 1.

    Args:
        values: the package's parts for an answer and a reference.
        own: the same for the reference and itself: 0 where it has no data flow.
    """
    flow = values["dataflow_match_score"] if own["dataflow_match_score"] else 1.0
    return min(1.0, (sum(values[name] for name in _PARTS) + flow) / 4)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The package warns of each reference that has no data flow."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check(rows: Sequence[Row], asked: Asked) -> str | None:
    if (problem := missing("codebleu", "eval")) is not None:
        return f"metric codebleu {problem}"
    language = asked.chosen(CodeBleuSettings).language
    known: list[str] = load("codebleu.utils", "eval").AVAILABLE_LANGS
    if language not in known:
        return f"metric codebleu: metric_settings.language {language} is none of {', '.join(known)}"
    if find_spec(f"tree_sitter_{language}") is None:
        name = f"tree-sitter-{language.replace('_', '-')}"
        return f"metric codebleu needs the grammar of {language}; pip install '{name}<0.22'"
    try:
        _judge(asked)("x = 1", {"answer": "x = 1"})
    except TypeError as error:  # a grammar of another version than the parser's
        return f"metric codebleu: tree_sitter_{language} does not fit the installed tree-sitter ({error}); install a version below 0.22"
    return None


CODEBLEU = Metric(
    name="codebleu",
    label="CodeBLEU",
    summary="CodeBLEU of the generated code against the best of its references, mean over rows (codebleu); nothing is run",
    rows="`answer`, else the assistant's text is the reference",
    scoring=Scoring.GENERATED,
    axis="CodeBLEU, %",
    card_type="codebleu",
    check=_check,
    judge=_judge,
    settings=CodeBleuSettings,
)
