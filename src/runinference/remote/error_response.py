"""The content of an error response, or of an error inside a response of status 200."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from runinference.remote.json_text import decode_json

MAX_QUOTED = 300  # characters of a response that a message quotes

_MESSAGE_FIELDS = ("error", "message", "detail", "msg")
_LABEL_FIELDS = (
    "code",
    "error_code",
    "status",
    "status_code",
    "type",
    "error_type",
    "name",
    "reason",
)
_HOLDER_LABEL_FIELDS = ("code", "error_code", "status", "status_code", "error_type")

# The first pattern that matches a label of an error, such as its code or type, decides its status. A request that
# exceeds a quota is rejected until someone pays, unlike one that exceeds a rate.
_QUOTA = re.compile("quota|billing|insufficient_(funds|balance|credit)|payment_required")
_STATUSES = (
    (402, _QUOTA),
    (429, re.compile("rate_?limit|too_?many_?requests|resource_?exhausted|throttl")),
    (503, re.compile("over_?load|unavailable|over_?capacity|model_?(is_?)?loading|busy|try_again")),
    (504, re.compile("time_?d?_?out|deadline_?exceeded")),
    (401, re.compile("unauthorized|unauthenticated|authentication|(invalid|incorrect)_(api_)?key")),
    (403, re.compile("permission|forbidden")),
    (404, re.compile("not_?found")),
    (
        400,
        re.compile(
            "invalid|content_?(filter|policy)|context_length|bad_?request|moderation|unprocessable"
        ),
    ),
    (500, re.compile("(server|internal|api)_?error|^internal$|bad_gateway")),
)
# In free text only these are clear enough.
_CLEAR_IN_TEXT = (429, 503, 504)


@dataclass(frozen=True)
class ServerError:
    """An error that a server describes.

    Attributes:
        message: The message of the server, on any number of lines.
        status: The HTTP status that corresponds to the description, or None if it is unclear.
        is_quota: Whether requests are rejected because a quota is used up, which no retry changes.
        retry_after: Seconds to wait, if the description has them.
        usage: The tokens that the request used, if the response reports them.
    """

    message: str
    status: int | None
    is_quota: bool = False
    retry_after: str | None = None
    usage: Any = None


def find_error(answer: Any) -> ServerError | None:
    """Return the error inside a JSON response, or None if there is none.

    >>> find_error({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}).status
    429
    """
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, Mapping):
        return None
    for holder in (answer, *_iter_choices(answer)):
        error = holder.get("error")
        if not error and isinstance(errors := holder.get("errors"), list) and errors:
            error = errors[0]
        if error and not isinstance(error, bool):
            return _describe(error, holder)
    if any(isinstance(answer.get(name), str) for name in _MESSAGE_FIELDS[1:]):
        return _describe(answer, {})
    return None


def read_error_body(body: bytes) -> ServerError:
    """Return the error in the body of an error response: JSON of a common format, or any text."""
    text = body.decode(errors="replace")
    try:
        value = decode_json(body)
    except Exception:
        return ServerError(text, None)
    found = find_error(value)
    return ServerError(
        _get_message(value),
        None if found is None else found.status,
        found is not None and found.is_quota,
        None if found is None else found.retry_after,
        value.get("usage") if isinstance(value, Mapping) else None,
    )


def strip_tags(text: str) -> str:
    """Return a text without HTML tags, and without scripts and styles, in linear time.

    >>> strip_tags("<style>b {}</style><h1 class='a'>Sign</h1> in, 1 < 2").split()
    ['Sign', 'in,', '1', '<', '2']
    """
    parts: list[str] = []
    position = 0
    while (tag := _TAG.search(text, position)) is not None:
        parts.append(text[position : tag.start()])
        start = tag.end()
        if tag[1]:
            closing = _CLOSING[tag[1].lower()].search(text, start)
            start = len(text) if closing is None else closing.end()
        position = text.find(">", start) + 1
        if not position:  # not HTML, or cut in the middle
            return " ".join([*parts, text[tag.start() :]])
    return " ".join([*parts, text[position:]])


_TAG = re.compile(r"<(?=[a-z/!])(?:(style|script)\b)?", re.IGNORECASE)
_CLOSING = {name: re.compile(f"</{name}(?=[\\s>])", re.IGNORECASE) for name in ("style", "script")}


def shorten(text: str, length: int = MAX_QUOTED) -> str:
    """Return the start of a text on one line."""
    text = " ".join(text.split()).rstrip(" .")
    return text if len(text) <= length else text[:length] + " ..."


def hide_secrets(location: str) -> str:
    """Return a URL without its user name, password, query and fragment, which may contain secrets."""
    try:
        parts = urlsplit(location)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an invalid location"
    hidden = "?[hidden]" if parts.query else ""
    return f"{parts.scheme}://{host}{port}{parts.path}{hidden}" if host else f"{parts.path}{hidden}"


def _iter_choices(answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping):
            yield choice


def _describe(error: Any, holder: Mapping[str, Any]) -> ServerError:
    message = _get_message(error)
    labels: list[Any] = (
        [error.get(name) for name in _LABEL_FIELDS] if isinstance(error, Mapping) else []
    )
    labels += [holder.get(name) for name in _HOLDER_LABEL_FIELDS]
    words = [
        str(label).lower().replace(" ", "_").replace("-", "_")[:100] for label in labels if label
    ]
    is_quota = any(map(_QUOTA.search, words))
    retry_after = error.get("retry_after") if isinstance(error, Mapping) else None
    return ServerError(
        message,
        _find_status(words, message),
        is_quota,
        None if retry_after is None else str(retry_after)[:100],
    )


def _find_status(words: list[str], message: str) -> int | None:
    if any(map(_QUOTA.search, words)):
        return 402
    for word in words:
        if word.isdecimal() and len(word) == 3 and 400 <= int(word) < 600:
            return int(word)
    for word in words:
        for status, pattern in _STATUSES:
            if pattern.search(word):
                return status
    text = message[:1_000].lower().replace(" ", "_").replace("-", "_")
    clear = ((status, pattern) for status, pattern in _STATUSES if status in _CLEAR_IN_TEXT)
    return next((status for status, pattern in clear if pattern.search(text)), None)


def _get_message(value: Any) -> str:
    while isinstance(value, Mapping):
        name = next((n for n in _MESSAGE_FIELDS if value.get(n)), None)
        if name is None:
            break
        value = value[name]
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (RecursionError, ValueError, TypeError):
        return f"a {type(value).__name__}"
