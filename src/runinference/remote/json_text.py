"""Strict JSON: no NaN in requests, and no ambiguous keys or deep nesting in responses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from runinference.errors import ElementError, UnusableAnswerError

#: Maximum nesting of values that are kept as the server sent them. Deeper ones can't be pickled everywhere.
MAX_DEPTH = 64

_TOO_DEEP = "The response is nested too deeply."


def encode_json(body: Any) -> bytes:
    """Return the JSON text of a request body.

    Raises:
        ElementError: The body contains NaN, infinity or a value that isn't of a JSON type.
    """
    try:
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        found = find_non_finite(body) if isinstance(error, ValueError) else None
        if found is not None:
            message = (
                f"A request contains {found}, which JSON can't represent. Replace it with with_preprocess_fn, or "
                "remove it from inference_args."
            )
        else:
            message = (
                f"A request can't be serialized to JSON ({error}). Convert elements with with_preprocess_fn, and "
                "use only numbers, strings, lists and dictionaries in inference_args."
            )
        raise ElementError(message) from error


def find_non_finite(value: Any) -> str | None:
    """Return the first NaN or infinity in a JSON value and its position, or None if there is none.

    >>> find_non_finite({"instances": [[1.0], [2.0, float("nan")]]})
    'nan (at instances[1][1])'
    """
    pending: list[tuple[str, Any]] = [("", value)]
    seen: set[int] = set()
    while pending:
        where, item = pending.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return f"{float(item)!r} (at {where.lstrip('.') or 'the top level'})"
        elif isinstance(item, (Mapping, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            parts: Iterable[tuple[str, Any]] = (
                [(f"{where}.{name}", part) for name, part in item.items()]
                if isinstance(item, Mapping)
                else [(f"{where}[{index}]", part) for index, part in enumerate(item)]
            )
            pending.extend(reversed(list(parts)))
    return None


def decode_json(text: bytes) -> Any:
    """Return the value of a JSON text, in which NaN and infinity are allowed.

    Raises:
        UnusableAnswerError: The text is nested too deeply, has a number of thousands of digits, or has two values
            for one key.
        ValueError: The text is not JSON, or incomplete.
    """
    try:
        return json.loads(text, object_pairs_hook=_to_dict)
    except RecursionError:
        raise UnusableAnswerError(_TOO_DEEP) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:  # Python limits the digits of an integer
        raise UnusableAnswerError(f"The response can't be read: {error}.") from None


def check_depth(value: Any) -> None:
    """Raise ``UnusableAnswerError`` if a JSON value is nested more than ``MAX_DEPTH`` levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [part for item in level for part in _get_parts(item)]
        if not level:
            return
    raise UnusableAnswerError(_TOO_DEEP)


def _get_parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for name, value in pairs:
            if fields[name] != value:
                raise UnusableAnswerError(f"The response has two values for {name[:80]!r}.")
    return fields
