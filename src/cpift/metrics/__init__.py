"""The table of metrics: a new one is a file beside this and a line in the table."""

from __future__ import annotations

from collections.abc import Iterable

from cpift.errors import CpiftError, did_you_mean
from cpift.metrics.chrf import CHRF
from cpift.metrics.code import CODE
from cpift.metrics.codebleu import CODEBLEU
from cpift.metrics.exact_match import EXACT_MATCH
from cpift.metrics.generate import GENERATE
from cpift.metrics.judge import JUDGE
from cpift.metrics.judge_pairwise import JUDGE_PAIRWISE
from cpift.metrics.lm_eval import is_lm_eval, lm_eval_metric
from cpift.metrics.loss import LOSS
from cpift.metrics.math import MATH
from cpift.metrics.metric import PER_CENT, Metric, Unit
from cpift.metrics.multiple_choice import MULTIPLE_CHOICE
from cpift.metrics.own import is_own, own_metric
from cpift.metrics.rouge import ROUGE
from cpift.table import Table

METRICS = Table(
    "metric",
    [
        EXACT_MATCH,
        GENERATE,
        LOSS,
        MULTIPLE_CHOICE,
        MATH,
        ROUGE,
        CHRF,
        CODE,
        CODEBLEU,
        JUDGE,
        JUDGE_PAIRWISE,
    ],
)
WITH_ANSWERS, WITHOUT_ANSWERS = EXACT_MATCH, LOSS  # what scores rows where the recipe names no metric


def named(name: str) -> Metric:
    """The metric that a recipe names.

    Raises:
        CpiftError: neither in the table nor of the form ``lm_eval:TASK`` or ``package.module:function``.
    """
    if name in METRICS:
        return METRICS[name]
    if is_lm_eval(name):
        return lm_eval_metric(name)
    if is_own(name):
        return own_metric(name)
    raise CpiftError(
        f"is none of {', '.join(METRICS)}, nor lm_eval:TASK, nor package.module:function{did_you_mean(name, METRICS)}"
    )


def brings_rows(name: str | None) -> bool:
    """Does the metric of this name have evaluation rows of its own? False of a name that is no metric's."""
    return name is not None and is_lm_eval(name)


def described(name: str) -> Metric:
    """The metric that a file of scores names: one that is not in the table is taken for a share of 1."""
    if name in METRICS:
        return METRICS[name]
    return lm_eval_metric(name) if is_lm_eval(name) else own_metric(name)


def mean_unit(names: Iterable[str]) -> Unit:
    """The unit of a mean over tasks: that of shares of the best possible score where any is one; others are left out.

    Shares of several units are given in per cent.
    """
    units = list(dict.fromkeys(described(name).unit for name in names))
    shares = [unit for unit in units if unit.bounded]
    return PER_CENT if len(shares) > 1 or not units else (shares or units)[0]


def common_axis(names: Iterable[str]) -> str:
    """Label of an axis that tasks of these metrics share."""
    axes = list(dict.fromkeys(described(name).axis for name in names))
    units = {described(name).unit for name in names}
    if len(axes) == 1:
        return axes[0]
    return f"score, {units.pop().short}" if len(units) == 1 else "score"


__all__ = [
    "METRICS",
    "WITHOUT_ANSWERS",
    "WITH_ANSWERS",
    "brings_rows",
    "common_axis",
    "described",
    "mean_unit",
    "named",
]
