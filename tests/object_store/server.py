"""A real S3-compatible server, and a proxy in front of it whose connections fail as a test orders.

The server is Versity's S3 gateway, which stores objects as files. Go builds it from the Go module proxy:

    python -m object_store.server
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "v1.8.0"
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / ".cache" / f"versitygw-{VERSION}" / "versitygw"
ACCESS_KEY, SECRET_KEY, REGION = "test-access-key", "test-secret-key", "us-east-1"


def install() -> Path:
    """Build the server, unless it is in the cache, and return the path of its program."""
    if PROGRAM.exists():
        return PROGRAM
    go = shutil.which("go")
    if go is None:
        sys.exit(
            "The S3 server is built with Go, which is not installed. To fix this, install Go 1.25 or later "
            "(https://go.dev/dl, or apt-get install golang-go)."
        )
    print(
        f"Building Versity's S3 gateway {VERSION} with Go. This takes a few minutes, once.",
        flush=True,
    )
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "GOBIN": str(PROGRAM.parent), "GOFLAGS": "-mod=mod -buildvcs=false"}
    package = f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"
    subprocess.run([go, "install", package], env=env, check=True)
    return PROGRAM


@contextmanager
def start_server(folder: Path) -> Iterator[int]:
    """Serve the folders of a folder as buckets on the loopback interface, and yield the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        PROGRAM,
        "--port",
        f"127.0.0.1:{port}",
        "--region",
        REGION,
        "--quiet",
        "posix",
        folder,
    ]
    env = {**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        yield port
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise RuntimeError(f"The S3 server did not start (exit code {server.poll()}).")


class FaultyProxy(ThreadingHTTPServer):
    """An HTTP proxy in front of a server.

    Attributes:
        requests: The method and path of each request, in order.
        faults: Functions that each handle one GET request of an object instead of the proxy, in order. They are
            called with the request handler and the response of the server.
        outage: Whether each request is answered with the status 503.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.server_to_ask = port
        self.reset()

    def reset(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Callable[[_ProxyHandler, Response], None]] = []
        self.outage = False

    def count(self, method: str, name: str) -> int:
        """Return the number of requests of an object."""
        return sum(each == method and path.endswith(name) for each, path in self.requests)


class Response:
    """A response of the server."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers = response.status, response.getheaders()
        self.body = response.read()


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _forward(self) -> None:
        self.server.requests.append((self.command, self.path.partition("?")[0]))
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if self.server.outage:
            self.send_slow_down()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_to_ask)
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        response = Response(connection.getresponse())
        connection.close()
        is_object = self.command == "GET" and "list-type" not in self.path
        if is_object and response.status < 300 and self.server.faults:
            self.server.faults.pop(0)(self, response)
        else:
            self.send(response)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815 - names of http.server

    def send(self, response: Response, length: int | None = None) -> None:
        """Send a response. With a length, send only so many bytes of its body, and close the connection."""
        self.send_response_only(response.status)
        for name, value in response.headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body[:length])
        if length is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def send_slow_down(self) -> None:
        """Send the response with which S3 asks for fewer requests."""
        body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        self.send_response_only(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def start_proxy(port: int) -> Iterator[FaultyProxy]:
    """Forward requests to a port of this machine."""
    with FaultyProxy(port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


if __name__ == "__main__":
    install()
