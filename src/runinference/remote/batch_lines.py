"""The files of the batch API: lines of requests, and lines of results, which may be missing or repeated."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runinference.errors import EndpointError
from runinference.remote.error_response import shorten
from runinference.remote.json_text import decode_json, encode_json

_logger = logging.getLogger(__name__)
#: Codes of requests that were not processed before the batch ended.
_UNFINISHED = ("batch_expired", "batch_cancelled")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a request in a batch.

    Attributes:
        response: The JSON response of status 200, or None.
        status: The status of another response, or None.
        error: The JSON body of another response, or the error if there is none.
        is_unfinished: Whether the batch ended before the request was processed.
        may_run_live: Whether to send the request without the batch API, because the batch ended too late.
    """

    response: Any = None
    status: int | None = None
    error: Any = None
    is_unfinished: bool = False
    may_run_live: bool = False


def get_request_id(*content: Any) -> str:
    """Return an ID that is the same for the same content, in all processes.

    Args:
        *content: JSON values.

    Raises:
        ElementError: The content can't be written as JSON.
    """
    text = encode_json(json.loads(encode_json(content), object_pairs_hook=_sort))
    return hashlib.sha256(text).hexdigest()[:40]


def _sort(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(sorted(pairs))


def write_line(request_id: str, url: str, body: Any) -> bytes:
    """Return the line of a request."""
    line = {"custom_id": request_id, "method": "POST", "url": url, "body": body}
    return encode_json(line) + b"\n"


def split_lines(
    lines: Mapping[str, bytes], max_requests: int, max_bytes: int
) -> Iterator[dict[str, bytes]]:
    """Split lines by ID into files of at most ``max_requests`` lines and ``max_bytes`` bytes.

    >>> [list(part) for part in split_lines({"a": b"12", "b": b"1", "c": b"1"}, 10, 3)]
    [['a', 'b'], ['c']]
    """
    part: dict[str, bytes] = {}
    size = 0
    for request_id, line in lines.items():
        if part and (len(part) == max_requests or size + len(line) > max_bytes):
            yield part
            part, size = {}, 0
        part[request_id] = line
        size += len(line)
    if part:
        yield part


def read_outcomes(contents: Iterable[bytes], ids: Iterable[str]) -> dict[str, Outcome]:
    """Return the outcomes of requests from the result files of a batch, in any order.

    The first response of a request counts. A response counts more than an error.

    Args:
        contents: The contents of the files.
        ids: The IDs of the requests. Lines of other requests are ignored.

    Returns:
        The outcomes by ID. Requests without a valid line are missing.
    """
    wanted = set(ids)
    found: dict[str, Outcome] = {}
    n_invalid = n_repeated = 0
    for line in (line for content in contents for line in content.splitlines()):
        if not line.strip():
            continue
        request_id, outcome = _read_line(line)
        if request_id not in wanted or outcome is None:
            n_invalid += 1
            continue
        if request_id in found:
            n_repeated += 1
        if request_id not in found or (
            found[request_id].response is None and outcome.response is not None
        ):
            found[request_id] = outcome
    if n_invalid or n_repeated:
        _logger.warning(
            "The results of a batch have %d lines that are invalid or of other requests, and %d repeated lines. "
            "They are ignored.",
            n_invalid,
            n_repeated,
        )
    return found


def has_results(content: bytes) -> bool:
    """Return whether a file contains a result, and is not, for example, an error."""
    return any(_read_line(line)[0] for line in content.splitlines() if line.strip())


def _read_line(line: bytes) -> tuple[str, Outcome | None]:
    try:
        value = decode_json(line)
    except (ValueError, EndpointError):
        return "", None
    if not isinstance(value, Mapping):
        return "", None
    request_id, response, error = (value.get(name) for name in ("custom_id", "response", "error"))
    if not isinstance(request_id, str):
        return "", None
    if isinstance(response, Mapping):
        status, body = response.get("status_code"), response.get("body")
        if status in (None, 200) and isinstance(body, Mapping) and not error:
            return request_id, Outcome(body)
        if isinstance(status, int) and 400 <= status < 600:
            return request_id, Outcome(status=status, error=body)
    code = error.get("code") if isinstance(error, Mapping) else None
    if error:
        return request_id, Outcome(error=error, is_unfinished=code in _UNFINISHED)
    return request_id, None


def describe_error(error: Any) -> str:
    """Return the message of an error in a line."""
    text = error.get("message") if isinstance(error, Mapping) else error
    return shorten(str(text or json.dumps(error)))
