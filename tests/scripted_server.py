"""A local HTTP server that replies, or fails to reply, as scripted, and records the requests that it gets."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_SECONDS = 30  # how long a request without a reply stays open


@dataclass(frozen=True)
class Reply:
    """A complete reply.

    Attributes:
        status: The HTTP status code.
        body: The body. Anything but text is sent as JSON.
        headers: Headers to send in addition to `Content-Length`, or instead of it.
    """

    status: int = 200
    body: object = ""
    headers: dict = field(default_factory=dict)

    def send(self, handler):
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        content = text.encode()
        handler.send_response(self.status)
        for name, value in {"Content-Length": str(len(content)), **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


class DropConnection:
    """Close the connection without a reply."""

    def send(self, handler):
        handler.close_connection = True
        handler.connection.shutdown(2)


class TruncatedReply:
    """Announce more bytes than are sent."""

    def send(self, handler):
        Reply(200, '{"choices": [', {"Content-Length": "1000"}).send(handler)
        DropConnection().send(handler)


class NoReply:
    """Send nothing until the server shuts down."""

    def send(self, handler):
        handler.close_connection = True
        handler.server.stopping.wait(MAX_SECONDS)


@dataclass(frozen=True)
class TrickledReply:
    """Send the given bytes at once, then a byte every 50 ms until the client closes the connection."""

    start: bytes
    byte: bytes = b" "

    def send(self, handler):
        handler.close_connection = True
        handler.wfile.write(self.start)
        while not handler.server.stopping.wait(0.05):
            try:
                handler.wfile.write(self.byte)
                handler.wfile.flush()
            except OSError:
                return


@dataclass(frozen=True)
class BytesReply:
    """A complete reply of status 200 whose body is sent as it is."""

    body: bytes
    headers: dict = field(default_factory=dict)

    def send(self, handler):
        handler.send_response(200)
        for name, value in {"Content-Length": str(len(self.body)), **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            handler.wfile.write(self.body)
        except OSError:
            handler.close_connection = True


class ScriptedServer(ThreadingHTTPServer):
    """Send the replies of a script in order, then call a function of the parsed request for each reply."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script, default, parses=True):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.default = default
        self.parses = parses
        self.requests = []
        self.request_headers = []
        self.request_paths = []
        self.request_contents = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        content = self.rfile.read(length)
        body = json.loads(content) if length and self.server.parses else None
        with self.server.lock:
            self.server.request_paths.append(self.path)
            self.server.request_contents.append(content)
            self.server.requests.append(body)
            self.server.request_headers.append(dict(self.headers))
            reply = self.server.script.pop(0) if self.server.script else None
        if reply is None:
            reply = self.server.default(body)
        (reply if hasattr(reply, "send") else Reply(200, reply)).send(self)

    def do_GET(self):
        self.do_POST()

    def log_message(self, *args):
        pass


@contextmanager
def scripted_server(*script, default=lambda body: body, parses=True):
    """Run a `ScriptedServer` in a thread while the block runs. By default, it parses and echoes requests."""
    with ScriptedServer(script, default, parses) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()
