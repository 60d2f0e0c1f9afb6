"""A server on this machine that does what a script says, well or badly, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECONDS = 30  # until a test gives up


@dataclass(frozen=True)
class Say:
    """An answer: its status, its headers, and its body, which is text, or will be JSON."""

    status: int = 200
    body: object = ""
    headers: dict = field(default_factory=dict)

    def to(self, handler):
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        content = text.encode()
        handler.send_response(self.status)
        for name, value in {"Content-Length": str(len(content)), **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


class Drop:
    """Breaks the connection in place of an answer."""

    def to(self, handler):
        handler.close_connection = True
        handler.connection.shutdown(2)


class Half:
    """Says that more comes than does."""

    def to(self, handler):
        Say(200, '{"choices": [', {"Content-Length": "1000"}).to(handler)
        Drop().to(handler)


class Silence:
    """Says nothing until the server ends."""

    def to(self, handler):
        handler.close_connection = True
        handler.server.ended.wait(SECONDS)


class Trickle:
    """Sends a byte now and then, and never all."""

    def to(self, handler):
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not handler.server.ended.wait(0.05):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return


class Faulty(ThreadingHTTPServer):
    """Answers by the script first, and then by a function of the parsed request."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script, then):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.then = then
        self.asked = []
        self.headers_seen = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        with self.server.lock:
            self.server.asked.append(body)
            self.server.headers_seen.append(dict(self.headers))
            line = self.server.script.pop(0) if self.server.script else None
        if line is None:
            line = self.server.then(body)
        (line if hasattr(line, "to") else Say(200, line)).to(self)

    def do_GET(self):
        self.do_POST()

    def log_message(self, *args):
        pass


@contextmanager
def faulty(*script, then=lambda body: body):
    """The server, while the block lasts."""
    with Faulty(script, then) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
