"""Network connections whose operations all end at the deadline of the current request.

The timeouts of HTTP clients apply to each read and write, so a server that sends a byte now and then could
prolong a request without limit. The classes here have the methods of ``httpcore.NetworkBackend`` and
``httpcore.NetworkStream``.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import Any

_CONNECT_TIMEOUT_SECS = 10.0
_MAX_WRITE = 1 << 16  # bytes that are sent before the deadline is checked again


class Deadline(threading.local):
    """The time at which the request of the current thread must be complete."""

    _end: float | None = None

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Give the operations in this block the same deadline."""
        self._end = time.monotonic() + seconds
        try:
            yield
        finally:
            self._end = None

    def remaining(self) -> float | None:
        """Return the seconds that are left, or None if there is no limit.

        Raises:
            TimeoutError: The deadline has passed.
        """
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline of the request has passed")
        return left


class DeadlineBackend:
    """Opens connections for requests with a deadline."""

    def __init__(self, backend: Any, deadline: Deadline) -> None:
        self._backend = backend
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> Any:
        """Open a connection to the first address of a host that accepts it.

        Raises:
            OSError: The host is unknown.
            Exception: An error or a timeout of httpcore for the last address.
        """
        left = self._deadline.remaining()
        end = time.monotonic() + min(
            _CONNECT_TIMEOUT_SECS, _CONNECT_TIMEOUT_SECS if left is None else left
        )
        addresses = _resolve(host, port, end - time.monotonic())
        for n_others in reversed(range(len(addresses))):
            # An address that doesn't answer leaves time for the others.
            seconds = max((end - time.monotonic()) / (n_others + 1), 0.001)
            try:
                stream = self._backend.connect_tcp(
                    addresses[-n_others - 1], port, seconds, local_address, socket_options
                )
                return _DeadlineStream(stream, self._deadline)
            except Exception:
                if not n_others:
                    raise
        raise OSError(f"{host} has no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> Any:
        raise NotImplementedError("Unix sockets are not supported.")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class _DeadlineStream:
    def __init__(self, stream: Any, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return bytes(self._stream.read(max_bytes, self._deadline.remaining()))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _MAX_WRITE):
            self._stream.write(buffer[start : start + _MAX_WRITE], self._deadline.remaining())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> Any:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.remaining())
        return _DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _resolve(host: str, port: int, timeout: float) -> list[str]:
    """Return the addresses of a host. The system's resolver has no timeout, so it runs in a thread."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=look_up, daemon=True, name="runinference-resolve").start()
    try:
        return found.result(timeout)
    except FutureTimeoutError:
        raise OSError(f"the address of {host} was not found within {timeout:.3g} seconds") from None
