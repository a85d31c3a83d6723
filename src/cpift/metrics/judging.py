"""What metrics of a judge share: settings, prompts, and many questions asked side by side."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from cpift.cache import cache_folder
from cpift.errors import CpiftError
from cpift.metrics.answers import Row, response, turns
from cpift.metrics.endpoint import Endpoint, Message, Usage
from cpift.metrics.metric import Asked
from cpift.metrics.settings import MetricSettings
from cpift.metrics.store import Store

OPENAI = "https://api.openai.com/v1"
_NAME = re.compile(r"\{(\w+)\}")
Verdict = TypeVar("Verdict")


class JudgeSettings(MetricSettings):
    """Settings of ``judge`` and ``judge_pairwise``."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"key_variable", "prompt", "parallel", "timeout", "retries", "wait", "max_requests", "cache"}
    )

    model: str
    """The judge, by the name that the endpoint knows it by."""
    base_url: str = OPENAI
    """Of any OpenAI-compatible endpoint, without /chat/completions."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; nothing else may hold it."""
    prompt: Path | None = None
    """A file of your own in place of the default prompt."""
    request: dict[str, Any] = Field(default={"temperature": 0, "max_tokens": 512})
    """Further keys of each request."""
    parallel: int = Field(default=8, ge=1, le=256)
    """Requests at a time."""
    timeout: float = Field(default=120, gt=0)
    """Seconds for one reply."""
    retries: int = Field(default=5, ge=0)
    """Tries after the first, where the endpoint is busy or cannot be reached."""
    wait: float = Field(default=1, ge=0)
    """Seconds before the first retry; each later one waits twice as long."""
    max_requests: int | None = Field(default=None, ge=1)
    """Most rows to ask about in one scoring of a task; more are refused before any request."""
    cache: Path | None = None
    """Folder of replies; by default judge in CPIFT_CACHE, else in ~/.cache/cpift."""

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        parts = urlsplit(value)
        if parts.username or parts.password or parts.query:
            raise ValueError("holds more than an address; the key goes into the environment variable of key_variable")
        return value.rstrip("/")

    @field_validator("request")
    @classmethod
    def _says_nothing_twice(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in ("model", "messages", "stream", "n"):
            if key in value:
                raise ValueError(f"cannot hold {key}")
        return value

    @property
    def endpoint(self) -> Endpoint:
        """Where the judge is asked."""
        store = Store(self.cache or cache_folder() / "judge")
        return Endpoint(self.base_url, self.key_variable, self.timeout, self.retries, self.wait, store)


@dataclass(frozen=True)
class Prompt:
    """A text with ``{names}``; what is put in for one is not looked through for others."""

    text: str

    @classmethod
    def of(cls, settings: JudgeSettings, default: str, needed: Sequence[str], known: Sequence[str]) -> Prompt:
        """The prompt that the settings name.

        Args:
            settings: with a file, or without.
            default: name of the file in the package.
            needed: names that it must have.
            known: names that it may have.

        Raises:
            CpiftError: it cannot be read, or its names are others.
        """
        if settings.prompt is None:
            return cls((files("cpift.metrics") / "prompts" / default).read_text(encoding="utf-8"))
        try:
            text = settings.prompt.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CpiftError(f"metric_settings.prompt: {settings.prompt} cannot be read ({error})") from error
        names = _NAME.findall(text)
        if absent := [name for name in needed if name not in names]:
            raise CpiftError(
                f"metric_settings.prompt: {settings.prompt} has no {{{absent[0]}}}; it may have {_listed(known)}"
            )
        return cls(text)

    @cached_property
    def digest(self) -> str:
        """Of the text: 32 hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with values in place of names; other braces stay."""
        return _NAME.sub(lambda found: values.get(found[1], found[0]), self.text)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def question_of(row: Row) -> str:
    """What was asked: the text of a lone user turn, else all turns before the answer with their roles."""
    if "messages" in row:
        before: Sequence[Mapping[str, object]] = turns(row)[:-1]
    else:
        given = row["prompt"]
        before = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if len(before) == 1:
        return str(before[0].get("content") or "")
    return "\n\n".join(f"{turn.get('role')}: {turn.get('content') or ''}" for turn in before)


def reference_of(row: Row) -> str:
    """The row's own answer: the text of its last turn."""
    return response(row)


def ask_all(
    settings: JudgeSettings,
    questions: Sequence[str],
    read: Callable[[str], Verdict | None],
    reminder: str,
) -> tuple[list[Verdict | None], Usage]:
    """A verdict on each question; one that cannot be read is asked for once more.

    Args:
        settings: of the judge.
        questions: whole prompts.
        read: a verdict out of a reply; None where it has none.
        reminder: sent after a reply without a verdict.

    Returns:
        The verdicts in order, None where the second reply has none either; and what was used.

    Raises:
        CpiftError: more questions than ``max_requests``, or the endpoint fails.
    """
    endpoint, usage = settings.endpoint, Usage()
    if settings.max_requests is not None:
        unknown = sum(endpoint.known(_body(settings, [_user(text)])) is None for text in questions)
        if unknown > settings.max_requests:
            raise CpiftError(
                f"the judge would be asked {unknown} questions, and metric_settings.max_requests is {settings.max_requests}; "
                "raise it, or score fewer rows"
            )

    failed = threading.Event()

    def verdict(question: str) -> Verdict | None:
        messages = [_user(question)]
        for last in (False, True):
            if failed.is_set():  # no further request is sent
                return None
            try:
                reply = endpoint.complete(settings.model, messages, settings.request)
            except BaseException:
                failed.set()
                raise
            usage.add(reply)
            if (found := read(reply.text)) is not None or last:
                return found
            messages += [{"role": "assistant", "content": reply.text}, _user(reminder)]
        return None

    with ThreadPoolExecutor(settings.parallel) as pool:
        asked = [pool.submit(verdict, question) for question in questions]
        try:
            verdicts = [each.result() for each in asked]
        except BaseException:  # an interrupt as well
            failed.set()
            raise
    endpoint.store.prune()
    return verdicts, usage


def _body(settings: JudgeSettings, messages: Sequence[Message]) -> dict[str, object]:
    return {**settings.request, "model": settings.model, "messages": list(messages)}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def sent_answers(asked: Asked, texts: Sequence[str]) -> dict[int, str]:
    """The answers that a judge is asked about, by row; an empty one scores 0, and is not sent.

    Args:
        asked: its pattern finds the answer within a text.
        texts: as they were generated, one a row.
    """
    pattern = asked.pattern
    answers = [text if pattern is None else pattern.find(text) or "" for text in texts]
    return {row: answer for row, answer in enumerate(answers) if answer.strip()}


def checked_by(name: str, prompt: Callable[[Asked], Prompt]) -> Callable[[Sequence[Row], Asked], str | None]:
    """The check of a metric: its prompt, and :func:`check_judge`.

    Args:
        name: of the metric.
        prompt: reads the prompt.
    """

    def check(rows: Sequence[Row], asked: Asked) -> str | None:
        try:
            prompt(asked)
        except CpiftError as error:
            return f"metric {name}: {error}"
        problem = check_judge(asked)
        return problem and f"metric {name}: {problem}"

    return check


def identified_by(prompt: Callable[[Asked], Prompt]) -> Callable[[Asked], Mapping[str, str]]:
    """What decides about a judge's scores beside its settings: the text of the prompt.

    Args:
        prompt: reads it.
    """
    return lambda asked: {"prompt": prompt(asked).digest}


def check_judge(asked: Asked) -> str | None:
    """What keeps the judge from being asked, or None. Nothing is sent."""
    settings = asked.chosen(JudgeSettings)
    if settings.base_url == OPENAI and not os.environ.get(settings.key_variable):
        return f"set the environment variable {settings.key_variable} to the key of {OPENAI}, or metric_settings.base_url to another endpoint"
    return None
