"""The recipe's tasks: where rows come from and how they are scored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from cpift.data.shapes import SHAPES, known_columns
from cpift.errors import CpiftError, did_you_mean, nearest
from cpift.metrics import brings_rows, named
from cpift.metrics.answers import AnswerPattern
from cpift.metrics.metric import Asked, Metric
from cpift.metrics.settings import MetricSettings
from cpift.recipe.part import Part


def _known_columns(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if name not in (columns := known_columns()):
            near = nearest(name, columns)
            hint = f"did you mean {near!r}?" if near else "it gives our name of a column theirs: {prompt: question}"
            raise ValueError(f"{name!r} is no column of a known shape; {hint}")
    return value


def _known_metric(value: str) -> str:
    try:
        named(value)
    except CpiftError as error:
        raise ValueError(str(error)) from error
    return value


def _check_settings(metric: Metric, given: dict[str, Any]) -> None:
    known = metric.settings.model_fields
    for name in given:
        if name not in known:
            hint = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise ValueError(f"metric_settings: {metric.name} has no {name!r}{did_you_mean(name, known)}; {hint}")
    try:
        metric.settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("metric_settings", *first["loc"])))
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise ValueError(f"{where}: {problem}, for metric {metric.name}") from error


Columns = Annotated[dict[str, str], AfterValidator(_known_columns)]
ShapeName = Annotated[str, AfterValidator(SHAPES.check)]
MetricName = Annotated[str, AfterValidator(_known_metric)]


class Source(Part):
    """One of several sets of a task. What is not given is the task's."""

    path: str
    """A file, a folder, a data set id, or path/to/dataset_info.json#name."""
    config: str | None = None
    """Configuration of a data set from the hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set from the hub."""
    split: str | None = None
    """Split of a data set from the hub, or an expression such as train[:2000]."""
    columns: Columns = {}
    """Our name of a column, and theirs: {question: problem, answer: solution}."""
    shape: ShapeName | None = None
    """Shape of the rows, where their columns fit several."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """How often each training row counts: 2 is twice, 0.5 a half of the rows, drawn by seed."""


def _kind_of_rows(value: Any) -> str:
    return _SETS if isinstance(value, list) else _NUMBER if isinstance(value, int) else _PATH


_NUMBER, _PATH, _SETS = "literal[number]", "literal[path]", "list[sets]"  # tags, which no message shows
Rows = Annotated[
    Annotated[int, Tag(_NUMBER)] | Annotated[str, Tag(_PATH)] | Annotated[list[Source], Tag(_SETS)],
    Discriminator(_kind_of_rows),
]


class Task(Part):
    """One task: where its rows come from and how it is scored."""

    generate: str | None = None
    """Name of a reasoning_gym task; ``train`` and ``eval`` are then numbers of rows."""
    train: Rows
    """A file, a folder, a Hugging Face data set id, a list of these, or with ``generate`` the number of rows."""
    eval: Rows | None = None
    """As ``train``; or a number of rows: generated, or else split off the training rows by seed. Left out where the metric
    has rows of its own, as lm_eval:NAME."""
    split: str = "train"
    """Split of a data set from the hub, or an expression such as train[:2000]."""
    eval_split: str = "test"
    """Split, where ``eval`` is a data set from the hub."""
    train_rows: int | None = Field(default=None, gt=0)
    """Use only this number of training rows, drawn by seed."""
    metric: MetricName | None = None
    """A metric of docs/metrics.md, or a function of your own as package.module:function. By default the one for rows
    with answers where they have them, else the one for rows without."""
    pattern: str | list[str] | None = None
    """Regular expression whose first group is the answer within a text, as in gsm8k: '#### (.+)'. Of several, the first
    that finds something counts."""
    match: Literal["last", "first"] = "last"
    """Which match of the pattern is the answer."""
    metric_settings: dict[str, Any] = {}
    """Settings of the metric, such as the model of judge; those of each metric are in docs/metrics.md."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Longest generated answer, in tokens."""
    config: dict[str, Any] | str = {}
    """Settings of the reasoning_gym task; or the configuration of a data set from the hub, such as main."""
    licence: str | None = None
    """Licence of the data, for the model card."""
    revision: str | None = None
    """Branch, tag or commit of a data set from the hub."""
    columns: Columns = {}
    """Our name of a column, and theirs: {question: problem, answer: solution}."""
    shape: ShapeName | None = None
    """Shape of the rows, where their columns fit several."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _as_sources(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, dict) else value
        if listed == []:
            raise ValueError("is an empty list")
        return [{"path": one} if isinstance(one, str) else one for one in listed] if isinstance(listed, list) else value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == []:
            raise ValueError("is an empty list")
        try:
            AnswerPattern.of(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is no regular expression ({error})") from error
        return value

    @model_validator(mode="after")
    def _known_settings(self) -> Task:
        if self.metric is None and self.metric_settings:
            raise ValueError("metric_settings needs metric, which says whose settings they are")
        if self.metric is not None:
            _check_settings(named(self.metric), self.metric_settings)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if brings_rows(self.metric):
            self._check_own_rows()
        elif self.eval is None:
            raise ValueError("eval is missing: a file, or a number of rows to split off the training rows")
        if self.generate is not None and not (type(self.train) is int and type(self.eval or 0) is int):
            raise ValueError("with generate, train and eval are numbers of rows")
        if self.generate is None and isinstance(self.train, int):
            raise ValueError("train is a number, but there is nothing to generate; name a file or add generate:")
        if self.generate is None and self.config and not isinstance(self.config, str):
            raise ValueError("config is a table for generated tasks only; of a data set it is a name, such as main")
        if self.generate is not None:
            for key in ("revision", "columns", "shape"):
                if getattr(self, key):
                    raise ValueError(f"{key} is for sets of rows, and the rows are generated")
            if isinstance(self.config, str):
                raise ValueError("config is a table of settings for generated tasks")
        if isinstance(self.eval, list) and any(source.weight != 1 for source in self.eval):
            raise ValueError("weight is for training rows; leave it out of eval")
        for name in ("train", "eval"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} is {value}; at least one row is needed")
        return self

    def _check_own_rows(self) -> None:
        """Refuse what a metric with rows and prompts of its own would not read."""
        for key in ("eval", "pattern", "max_new_tokens"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"metric {self.metric} has rows and answers of its own; leave out {key}")

    def sources(self, part: Literal["train", "eval"]) -> list[Source]:
        """The sets of the training or evaluation rows, with the task's own settings where they have none."""
        value = getattr(self, part)
        listed = value if isinstance(value, list) else [Source(path=str(value))]
        own = {
            "config": self.config if isinstance(self.config, str) else None,
            "revision": self.revision,
            "split": self.split if part == "train" else self.eval_split,
            "columns": self.columns,
            "shape": self.shape,
        }
        return [s.model_copy(update={k: v for k, v in own.items() if not getattr(s, k)}) for s in listed]

    @property
    def asked(self) -> Asked:
        """What the task asks of its metric."""
        return Asked(self.answer_pattern, self.generate, self.metric is not None, self.metric_settings)

    def chosen_settings(self, metric: Metric) -> MetricSettings:
        """The settings of the task's metric, which the check of the recipe has accepted."""
        return self.asked.chosen(metric.settings)

    def placed(self, folder: Path) -> Task:
        """The task with relative files of its metric's settings counted from a folder."""
        fields = named(self.metric).settings.model_fields if self.metric else {}
        files = [name for name in self.metric_settings if fields[name].annotation == Path | None]
        placed = {name: str(folder / str(value)) for name in files if (value := self.metric_settings[name])}
        return self.model_copy(update={"metric_settings": {**self.metric_settings, **placed}}) if placed else self

    @property
    def answer_pattern(self) -> AnswerPattern | None:
        """Where an answer is within a text; None: the text is the answer."""
        return AnswerPattern.of(self.pattern, self.match)

    def settings(self) -> dict[str, Any]:
        """What the rows and scores are made of. Newer keys count only where they are given: older runs stay as they are."""
        newer = {
            name
            for name in ("revision", "columns", "shape", "match", "metric_settings")
            if getattr(self, name) in (None, {}, "last")
        }
        return self.model_dump(exclude={"licence", *newer})
