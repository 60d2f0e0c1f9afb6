"""Read and decompress the body of a response, up to a maximum size."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

#: The value of the request header ``Accept-Encoding``: what ``read_body`` can decompress in bounded memory.
ACCEPTED_ENCODINGS = "gzip, deflate"

_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_RAW_DEFLATE = -zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"
_IDENTITY = ("", "identity")


class BodyError(Exception):
    """A body can't be decompressed, or ends too early."""


class UnknownEncodingError(BodyError):
    """A body has a content encoding that was not asked for."""


def read_body(chunks: Iterable[bytes], encoding: str, max_bytes: int) -> tuple[bytes, bool]:
    """Return a decompressed body, and whether it is complete.

    A longer body is cut at ``max_bytes``. Neither its compressed nor its decompressed rest is read into memory.

    Args:
        chunks: The parts of the body as the server sent them.
        encoding: Value of the header ``Content-Encoding``.
        max_bytes: Maximum size of the decompressed body.

    Raises:
        UnknownEncodingError: The encoding is not one of ``ACCEPTED_ENCODINGS``.
        BodyError: The data are invalid or end before the end of the compressed stream.
    """
    encoding = encoding.strip().lower()
    if encoding not in (*_IDENTITY, "gzip", "x-gzip", "deflate"):
        raise UnknownEncodingError(encoding)
    inflate = None if encoding in _IDENTITY else _Inflate(allow_raw=encoding == "deflate")
    body = bytearray()
    n_raw = 0
    for chunk in chunks:
        n_raw += len(chunk)
        if inflate is None:
            body += chunk
        else:
            inflate.decompress(chunk, body, max_bytes + 1)
        if max(len(body), n_raw) > max_bytes:
            return bytes(body[:max_bytes]), False
    if inflate is not None:
        inflate.check_end()
    return bytes(body), True


class _Inflate:
    """Decompresses zlib, raw deflate and gzip data; the latter may have several members."""

    def __init__(self, allow_raw: bool) -> None:
        self._allow_raw = allow_raw
        self._stream: Any = None  # of the current member
        self._header = b""  # the start of a member, until it is long enough
        self._ended = False

    def decompress(self, data: bytes, body: bytearray, max_bytes: int) -> None:
        """Append the decompressed data to a body, until it has ``max_bytes``."""
        while data and not self._ended and len(body) < max_bytes:
            if self._stream is None or self._stream.eof:
                data = self._header + data
                self._header = data if len(data) < 2 else b""
                if self._header or not self._open(data[:2]):
                    return
            try:
                body += self._stream.decompress(data, max_bytes - len(body))
            except zlib.error as error:
                raise BodyError(f"the compressed data are invalid: {error}") from None
            data = self._stream.unused_data or self._stream.unconsumed_tail

    def check_end(self) -> None:
        """Raise ``BodyError`` if the compressed data are incomplete. An empty body is complete."""
        is_open = self._header if self._stream is None else not self._stream.eof
        if is_open:
            raise BodyError("the compressed data end too early")

    def _open(self, header: bytes) -> bool:
        """Start a member. Return False if the bytes are padding behind the last one."""
        window_bits = _ZLIB_OR_GZIP
        if self._stream is None:
            is_zlib = header[0] & 15 == zlib.DEFLATED and int.from_bytes(header, "big") % 31 == 0
            if self._allow_raw and not is_zlib and header != _GZIP_MAGIC:
                window_bits = _RAW_DEFLATE
        elif header != _GZIP_MAGIC:
            self._ended = True
            return False
        self._stream = zlib.decompressobj(window_bits)
        return True
