"""A small JSON server on this machine, which lives as long as its block."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Makes the answer to a request, of its path, its headers, and its parsed body: None for a GET.
Answer = Callable[[str, Any, Any], Any]


class Refused(Exception):  # noqa: N818 - no error here: an answer
    """A request that gets another answer than 200."""

    def __init__(self, status: int, body: Any, **headers: str) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    answer: Answer


class _Answering(BaseHTTPRequestHandler):
    """Hands requests to the server's ``answer``, and what that gives or raises back as JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self._answer(json.loads(body))
        except ValueError:
            self._send(400, {"error": "that is no JSON"})

    def _answer(self, body: Any) -> None:
        try:
            answer = self.server.answer(self.path, self.headers, body)
        except Refused as refused:
            self._send(refused.status, refused.body, refused.headers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._send(400, {"error": f"the request is not as it should be: {error!r}"})
        else:
            self._send(200, answer)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Answers on a free port of this machine until the block ends; gives the address."""
    with _Server(("127.0.0.1", 0), _Answering) as server:
        server.answer = answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
