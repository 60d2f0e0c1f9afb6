"""A small JSON server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from runinference.errors import UnusableAnswerError
from runinference.remote.binary_messages import JSON_SIZE, decode_message, encode_message

Answer = Callable[[str, Any, Any], Any]


class ErrorResponse(Exception):  # noqa: N818 - a response, not an error of the server
    """Raised by an ``Answer`` to respond with a status other than 200."""

    def __init__(self, status: int, body: Any, **headers: str) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


@dataclass(frozen=True)
class BinaryResponse:
    """Returned by an ``Answer`` to send tensors as binary data: outputs whose data are ``bytes``."""

    body: Any


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
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind = self.headers.get("Content-Type", "")
            if JSON_SIZE in self.headers:
                request = decode_message(body, {JSON_SIZE.lower(): self.headers[JSON_SIZE]})
            elif kind.startswith("multipart/form-data"):
                request = _parse_form(kind, body)
            else:
                request = json.loads(body, parse_constant=_reject_constant)
        except (ValueError, RecursionError, UnusableAnswerError) as error:
            self._send(400, {"error": f"the body is not valid: {error}"})
        else:
            self._respond(request)

    def _respond(self, body: Any) -> None:
        try:
            response = self.server.answer(self.path, self.headers, body)
        except ErrorResponse as error:
            self._send(error.status, error.body, error.headers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._send(400, {"error": f"the request is invalid: {error!r}"})
        else:
            if isinstance(response, BinaryResponse):
                self._send_content(200, *encode_message(response.body))
            else:
                self._send(200, response)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        try:
            is_json = not isinstance(body, bytes)
            content = json.dumps(body, allow_nan=False).encode() if is_json else body
        except ValueError as error:  # JSON has no NaN
            status, content = (
                500,
                json.dumps({"error": f"the response is not JSON: {error}"}).encode(),
            )
        named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self._send_content(status, content, {"Content-Type": kind, **named})

    def _send_content(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


def _parse_form(content_type: str, body: bytes) -> dict[str, bytes]:
    """Return the fields of a form, and the content of its files."""
    message = BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    parts: Any = message.get_payload()
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
        for part in parts
    }


def _reject_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


@contextmanager
def serving(answer: Answer, port: int = 0) -> Iterator[str]:
    """Run a server on this machine while the block runs, and yield its URL.

    Args:
        answer: Returns the JSON response, or bytes, for a path, headers and a parsed JSON body. The body is None
            for a GET, and a dictionary of bytes for a form.
        port: The port, by default a free one.
    """
    with _Server(("127.0.0.1", port), _RequestHandler) as server:
        server.answer = answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
