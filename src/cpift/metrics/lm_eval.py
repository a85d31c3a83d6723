"""Tasks of lm-eval: ``lm_eval:NAME``. Their rows, prompts and metrics are lm-eval's own; the model is ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from pydantic import Field

from cpift.metrics.answers import Row
from cpift.metrics.metric import Asked, Metric, Scoring
from cpift.metrics.packages import missing
from cpift.metrics.settings import MetricSettings

PREFIX = "lm_eval:"
EXTRA = "eval"


class LmEvalSettings(MetricSettings):
    """What ``metric_settings`` may hold."""

    limit: int | None = Field(default=None, gt=1)
    """Items that lm-eval takes, from the first on; all where it is null."""


def is_lm_eval(name: str) -> bool:
    """Does a name have the form ``lm_eval:NAME``?"""
    return name.startswith(PREFIX) and len(name) > len(PREFIX)


def lm_eval_metric(name: str) -> Metric:
    """The metric of a task of lm-eval: a score from 0 to 1 an item."""

    def check(rows: Sequence[Row], asked: Asked) -> str | None:
        if asked.pattern is not None:
            return f"metric {name} has lm-eval's own filters; leave out pattern"
        problem = missing("lm_eval", EXTRA)
        return None if problem is None else f"metric {name} {problem}"

    return Metric(
        name=name,
        label=name.removeprefix(PREFIX),
        summary=f"lm-eval's own score of its task {name.removeprefix(PREFIX)}",
        rows="none: lm-eval brings its own",
        scoring=Scoring.LM_EVAL,
        axis="score, %",
        check=check,
        identity=lambda asked: identity(),
        settings=LmEvalSettings,
    )


def identity() -> Mapping[str, str]:
    """The version of lm-eval, for the key of a stage."""
    try:
        return {"lm_eval": version("lm_eval")}
    except PackageNotFoundError:  # the check says so
        return {}
