"""A small JSON server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, Any, Any], Any]


class ErrorResponse(Exception):  # noqa: N818 - a response, not an error of the server
    """Raised by an ``Answer`` to respond with a status other than 200."""

    def __init__(self, status: int, body: Any, **headers: str) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    answer: Answer


class _RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._respond(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self._respond(json.loads(body))
        except ValueError:
            self._send(400, {"error": "the body is not valid JSON"})

    def _respond(self, body: Any) -> None:
        try:
            response = self.server.answer(self.path, self.headers, body)
        except ErrorResponse as error:
            self._send(error.status, error.body, error.headers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._send(400, {"error": f"the request is invalid: {error!r}"})
        else:
            self._send(200, response)

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
        """Log nothing."""


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Run a server on a free port of this machine while the block runs, and yield its URL.

    Args:
        answer: Returns the JSON response for a path, headers and a parsed JSON body, which is None for a GET.
    """
    with _Server(("127.0.0.1", 0), _RequestHandler) as server:
        server.answer = answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
