"""Bodies are decompressed up to a limit, whatever their encoding, chunks and members."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from runinference.remote.response_body import BodyError, UnknownEncodingError, read_body

TEXT = b'{"predictions": [1, 2, 3]}' * 50
LIMIT = 10_000


def compress(data):
    return gzip.compress(data, mtime=0)  # the same bytes in each process that collects the tests


def deflate_raw(data):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def split(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


ENCODED = [
    ("", TEXT),
    ("identity", TEXT),
    ("gzip", compress(TEXT)),
    ("GZIP ", compress(TEXT)),
    ("x-gzip", compress(TEXT)),
    ("gzip", b"".join(compress(part) for part in split(TEXT, 100))),
    ("gzip", compress(b"") + compress(TEXT) + b"\0" * 20),
    ("deflate", zlib.compress(TEXT)),
    ("deflate", deflate_raw(TEXT)),
]


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(("encoding", "data"), ENCODED)
def test_returns_the_body_however_it_is_encoded_and_split(encoding, data, size):
    assert read_body(split(data, size), encoding, LIMIT) == (TEXT, True)
    assert read_body(split(data, size), encoding, len(TEXT)) == (TEXT, True)


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
def test_a_response_without_a_body_is_empty(encoding):
    assert read_body([], encoding, LIMIT) == (b"", True)


def endless(data):
    while True:
        yield data


BIG = b" " * 10_000_000
BOMBS = [
    ("", endless(b" " * 1_000)),
    ("gzip", [compress(BIG)]),
    ("gzip", split(compress(BIG), 10)),
    ("gzip", endless(compress(b" " * 100))),
    ("gzip", endless(compress(b""))),
    ("deflate", [zlib.compress(BIG)]),
    ("deflate", [deflate_raw(BIG)]),
]


@pytest.mark.parametrize(("encoding", "chunks"), BOMBS)
def test_cuts_a_body_at_the_limit_and_reads_no_more(encoding, chunks):
    body, complete = read_body(chunks, encoding, LIMIT)
    assert (len(body) <= LIMIT, complete) == (True, False)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip\0"])
def test_rejects_an_encoding_that_was_not_requested(encoding):
    with pytest.raises(UnknownEncodingError):
        read_body([b"x"], encoding, LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        compress(TEXT)[:-9],
        b"\x1f\x8bnot gzip",
        b"plain text",
        compress(random.Random(0).randbytes(500))[:300],
    ],
    ids=["cut", "broken", "plain", "incompressible and cut"],
)
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_rejects_invalid_and_incomplete_data(encoding, data):
    with pytest.raises(BodyError):
        read_body([data], encoding, LIMIT)
