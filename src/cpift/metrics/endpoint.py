"""Chat completions of an OpenAI-compatible endpoint: asked with retries, kept on disk by content, tokens counted.

The key comes from an environment variable and goes into one header. No file, message or error holds it.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cpift.errors import CpiftError
from cpift.metrics.store import Store, digest

_TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever the endpoint asks for
_LARGEST = 4 << 20  # bytes of a reply

Message = Mapping[str, str]


@dataclass
class Usage:
    """What was asked, and what it cost.

    Attributes:
        requests: replies that the endpoint gave.
        cached: replies that were on disk.
        prompt_tokens: as the endpoint counted them, of its replies now.
        completion_tokens: the same.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        with self._lock:
            if reply.cached:
                self.cached += 1
                return
            self.requests += 1
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens

    def counts(self) -> dict[str, int]:
        """For a file of scores."""
        names = ("requests", "cached", "prompt_tokens", "completion_tokens")
        return {name: int(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class Reply:
    """One reply: its text, its tokens, and whether it was on disk."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool = False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """Where completions come from.

    Attributes:
        base_url: up to and without ``/chat/completions``.
        key_variable: the environment variable that holds the key; no key is sent where it is not set.
        timeout: seconds for one reply.
        retries: tries after the first, of what may pass: limits of rate, errors of the server, lost connections.
        wait: seconds before the first retry; doubled for each later one.
        store: where replies are kept.
    """

    base_url: str
    key_variable: str
    timeout: float
    retries: int
    wait: float
    store: Store

    def key_of(self, body: Mapping[str, object]) -> str:
        """The key of a reply on disk: the endpoint and all that is sent, but for the API key."""
        return digest({"url": self.base_url, "body": body})

    def known(self, body: Mapping[str, object]) -> Reply | None:
        """The reply that is on disk, or None."""
        kept = self.store.get(self.key_of(body))
        return _reply(kept, cached=True) if kept is not None else None

    def complete(self, model: str, messages: Sequence[Message], request: Mapping[str, object]) -> Reply:
        """The reply to a conversation, from disk where it was asked before.

        Args:
            model: the name that the endpoint knows it by.
            messages: the conversation.
            request: further keys of the request, such as ``temperature``.

        Raises:
            CpiftError: the endpoint refuses, cannot be reached, or replies otherwise than the API says.
        """
        body = {**request, "model": model, "messages": list(messages)}
        if (known := self.known(body)) is not None:
            return known
        reply = self._asked(body)
        found = _reply(reply)
        if found is None:
            raise CpiftError(
                f"{self.base_url}: replied otherwise than the chat completions API says ({self._clean(reply)})"
            )
        self.store.put(self.key_of(body), reply)
        return found

    def _asked(self, body: Mapping[str, object]) -> object:
        wait, problem = self.wait, ""
        for left in range(self.retries, -1, -1):
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                with error:
                    text = self._clean(error.read(2000).decode("utf-8", "replace"))
                problem, asked = f"HTTP {error.code}: {text}", _retry_after(error.headers.get("Retry-After"))
                if error.code not in _TRY_AGAIN:
                    raise CpiftError(
                        f"{self.base_url}: refused the request, {problem}{self._hint(error.code)}"
                    ) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem, asked = self._clean(str(getattr(error, "reason", error)) or type(error).__name__), None
            if left:
                time.sleep(min(_LONGEST_WAIT, wait if asked is None else max(asked, wait)))
                wait *= 2
        tries = self.retries + 1
        raise CpiftError(
            f"{self.base_url}: no reply after {tries} tries ({problem}); replies so far are kept, start again to resume"
        )

    def _once(self, body: Mapping[str, object]) -> object:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.base_url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
            reply: object = json.loads(response.read(_LARGEST))
            return reply

    def _hint(self, code: int) -> str:
        if code in (401, 403):
            return f"; the environment variable {self.key_variable} holds the key"
        return "; look at base_url and model in metric_settings" if code in (301, 302, 307, 308, 404) else ""

    def _clean(self, content: object) -> str:
        """One short line without the key."""
        text = " ".join(str(content).split())
        key = os.environ.get(self.key_variable)
        return (text.replace(key, "…") if key else text)[:300]


def _retry_after(value: str | None) -> float | None:
    """Seconds, of a header that has seconds or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _reply(content: object, cached: bool = False) -> Reply | None:
    """What counts of the endpoint's JSON; None where it has no text."""
    match content:
        case {"choices": [{"message": {"content": str(text)}}, *_], "usage": dict(usage)}:
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            prompt, completion = (count if isinstance(count, int) else 0 for count in counts)
            return Reply(text, prompt, completion, cached)
        case {"choices": [{"message": {"content": str(text)}}, *_]}:  # an endpoint that counts nothing
            return Reply(text, 0, 0, cached)
        case _:
            return None
