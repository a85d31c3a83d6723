"""A judge on this machine: an OpenAI-compatible endpoint whose replies a test writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | int | tuple[int, dict[str, str], str]
"""The text of a reply; or a status, perhaps with headers and a body. 0 closes the connection without a reply."""


@dataclass
class Judge:
    """What was asked, and where."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def questions(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def judge_server(reply: Callable[[int, str], Reply]) -> Iterator[Judge]:
    """An endpoint that replies by the number of the request, from 0, and its last message."""
    judge, lock = Judge(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(judge.bodies)
                judge.bodies.append(body)
                judge.keys.append(self.headers.get("Authorization"))
            given = reply(number, body["messages"][-1]["content"])
            if given == 0:
                self.close_connection = True
                return
            if isinstance(given, str):
                message = {"role": "assistant", "content": given}
                usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
                given = 200, {}, json.dumps({"choices": [{"index": 0, "message": message}], "usage": usage})
            status, headers, text = given if isinstance(given, tuple) else (given, {}, '{"error": "busy"}')
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
