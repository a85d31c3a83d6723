"""Requests of lm-eval, in batches that several processes share out: the batches of one process, and so the same bits.

What was answered before is not asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

from cpift.distributed.sharing import Share
from cpift.evaluation.known import Known
from cpift.metrics.store import digest

T = TypeVar("T")
Answer = tuple[str | float, int]
"""A likelihood and whether greedy decoding gives it; or a text, and 1."""

Likelihood = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request for a likelihood: its texts, the tokens before, and those whose likelihood is asked for."""


class TextRequest(Protocol):
    """A request of lm-eval for a text that is generated."""

    @property
    def args(self) -> tuple[str, Mapping[str, Any]]:
        """The prompt, and how it is continued."""


def share_requests(
    model: Any, batch: int, share: Share, known: Known | None = None, settings: Mapping[str, object] | None = None
) -> list[int]:
    """Have a model of lm-eval answer its requests batch by batch, each process its share of the batches.

    Args:
        model: lm-eval's ``HFLM``. All processes must ask it for the same.
        batch: rows of a forward pass, as the model was made with.
        share: of this process.
        known: of the model. Requests whose answers it has are not asked for; new answers are added. That of the first
            process counts.
        settings: what an answer depends on beside the model and the request.

    Returns:
        The number of requests that were asked for, of each call; it grows while the model is used.
    """
    known, asked = known or Known(), list[int]()
    likelihoods, texts = model._loglikelihood_tokens, model.generate_until

    def answered(
        kind: str, requests: Sequence[T], keys: list[str], ask: Callable[[list[T]], list[Answer]]
    ) -> list[Answer]:
        section = known.section({"requests": kind, **(settings or {})})
        before = share.gather({key: section.values[key] for key in keys if key in section.values})[0]
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in before}
        asked.append(len(new))
        found = dict(zip(new, ask(list(new.values())), strict=True))
        section.keep(found)
        return [before[key] if key in before else found[key] for key in keys]

    def all_likelihoods(requests: list[Likelihood], **options: Any) -> list[tuple[float, bool]]:
        def ask(some: list[Likelihood]) -> list[Answer]:
            batches = likelihood_batches(some, batch)
            found = _answers(batches, some, partial(likelihoods, **options), share)
            return [(value, int(greedy)) for value, greedy in found]

        keys = [digest([before, wanted]) for _, before, wanted in requests]
        found = answered("likelihoods", requests, keys, ask)
        return [(float(value), bool(greedy)) for value, greedy in found]

    def all_texts(requests: list[TextRequest], **options: Any) -> list[str]:
        def ask(some: list[TextRequest]) -> list[Answer]:
            lengths = [len(model.tok_encode(request.args[0])) for request in some]
            found = _answers(text_batches(some, lengths, batch), some, partial(texts, **options), share)
            return [(text, 1) for text in found]

        keys = [digest(list(request.args)) for request in requests]
        return [str(text) for text, _ in answered("texts", requests, keys, ask)]

    model._loglikelihood_tokens, model.generate_until = all_likelihoods, all_texts
    return asked


def _answers(
    batches: list[list[int]], requests: Sequence[T], work: Callable[[list[T]], list[Any]], share: Share
) -> list[Any]:
    """The answer to each request, in their order.

    Args:
        batches: numbers of requests.
        requests: all of them.
        work: answers the requests of a batch.
        share: of this process.
    """
    answers: list[Any] = [None] * len(requests)
    done: list[int] = []
    for rows in share.own(batches):
        for row, answer in zip(rows, work([requests[i] for i in rows]), strict=True):
            answers[row] = answer
        done += rows
    share.fill(done, answers)
    return answers


def likelihood_batches(requests: Sequence[Likelihood], batch: int) -> list[list[int]]:
    """Numbers of the requests of each batch that lm-eval makes.

    Requests that differ in their last token alone share a row of a pass. The longest rows come first.

    Args:
        requests: all of a call.
        batch: rows of a pass.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (_, before, asked) in enumerate(requests):
        groups.setdefault(tuple(before + asked[:-1]), []).append(number)

    def order(members: list[int]) -> tuple[int, list[int]]:
        _, before, asked = requests[max(members, key=lambda number: len(requests[number][2]))]
        return -len(before + asked), before + asked

    rows = sorted(groups.values(), key=order)
    return [list(chain.from_iterable(rows[i : i + batch])) for i in range(0, len(rows), batch)]


def text_batches(requests: Sequence[TextRequest], lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Numbers of the requests of each batch that lm-eval makes: those of like settings together, the longest first.

    Args:
        requests: all of a call.
        lengths: tokens of each prompt.
        batch: rows of a pass.
    """
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(repr(request.args[1]), []).append(number)
    found = []
    for members in groups.values():
        rows = sorted(members, key=lambda number: (-lengths[number], requests[number].args[0]))
        found += [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return found
