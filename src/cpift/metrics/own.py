"""A metric of one's own: ``metric: package.module:function`` in a recipe, with no change to cpift.

The function takes a generated text and its row, and returns a score from 0 to 1.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from numbers import Real
from pathlib import Path

from cpift.errors import CpiftError
from cpift.metrics.answers import Row
from cpift.metrics.metric import Asked, Judge, Metric, Scoring

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own(name: str) -> bool:
    """Does a name have the form ``package.module:function``?"""
    return _NAME.fullmatch(name) is not None


def own_metric(name: str) -> Metric:
    """The metric of a function. Its module is imported when rows are checked or scored, not here."""

    def check(rows: Sequence[Row], asked: Asked) -> str | None:
        try:
            _function(name)
        except CpiftError as error:
            return str(error)
        return None

    return Metric(
        name=name,
        label=name,
        summary=f"the score of a generated answer by {name}",
        rows="what the function reads",
        scoring=Scoring.GENERATED,
        axis="score, %",
        check=check,
        judge=lambda asked: _judge(name, asked),
        identity=lambda asked: _identity(name),
    )


def _judge(name: str, asked: Asked) -> Judge:
    function, pattern = _function(name), asked.pattern

    def judge(text: str, row: Row) -> float:
        answer = text if pattern is None else pattern.find(text)
        if answer is None:
            return 0.0
        try:
            value = function(answer, dict(row))
        except Exception as error:  # code that is not ours
            raise CpiftError(f"metric {name}: failed on a row ({type(error).__name__}: {error})") from error
        score = float(value) if isinstance(value, Real) else math.nan
        if not 0 <= score <= 1:
            raise CpiftError(f"metric {name}: returned {value!r}; it must return a number from 0 to 1")
        return score

    return judge


def _function(name: str) -> Callable[..., object]:
    """The function itself, from an installed module or one in the current folder.

    Raises:
        CpiftError: the module cannot be imported, or has no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        with _current_folder():
            found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # a module may fail in any way as it is imported
        raise CpiftError(
            f"metric {name}: {module} cannot be imported ({type(error).__name__}: {error}); install it, or start cpift in "
            "the folder that holds it"
        ) from error
    if not callable(found):
        raise CpiftError(f"metric {name}: {module} has no function {attribute}")
    function: Callable[..., object] = found
    return function


def _identity(name: str) -> Mapping[str, str]:
    """A hash of the module's source, so that scores are made anew where it has changed. Helpers elsewhere do not count."""
    try:
        with _current_folder():
            spec = find_spec(name.partition(":")[0])
    except (ImportError, ValueError):  # its package cannot be imported: the check says so
        spec = None
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return {}
    return {"metric_code": hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:32]}


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules in the current folder can be imported too, after all installed ones."""
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
