"""Requests and responses of the OpenAI API, as functions without network access."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runinference.errors import ElementError, ResultMismatchError, UnusableAnswerError
from runinference.remote.json_tensors import describe_json
from runinference.remote.json_text import check_depth
from runinference.remote.request_batch import split_batch


@dataclass(frozen=True)
class Generation:
    """The output of a language model for one example.

    Attributes:
        text: Text of the first choice. If its content has several parts, they are concatenated. Empty if the model
            called tools or a function instead.
        finish_reason: Why generation stopped, such as ``"stop"``, or ``"length"`` if ``max_tokens`` was reached.
        choices: All choices as the server sent them, including fields such as tool calls and log probabilities.
        usage: Token counts of the request. None if the server sent none, or if several examples shared the
            request.
        value: The value of the answer, with ``output_type``. None without it, or if the model called tools
            instead.
    """

    text: str
    finish_reason: str | None
    choices: list[dict[str, Any]]
    usage: dict[str, Any] | None
    value: Any = None


def to_messages(example: Any) -> list[Any]:
    """Convert a string or a list of messages to chat messages, or raise ``ElementError``.

    >>> to_messages("Hello")
    [{'role': 'user', 'content': 'Hello'}]
    """
    if isinstance(example, str):
        return [{"role": "user", "content": str(example)}]
    messages = list(example) if isinstance(example, (list, tuple)) else []
    if messages and all(isinstance(one, Mapping) and "role" in one for one in messages):
        return messages
    raise ElementError(
        "An element of a chat must be a string, or a list of messages such as {'role': 'user', 'content': '...'}. "
        f"Got {describe_json(example)}. Convert it with with_preprocess_fn."
    )


def to_strings(batch: Sequence[Any]) -> list[str]:
    """Convert examples to plain strings, or raise ``ElementError`` if one isn't a string."""
    for index, example in enumerate(batch):
        if not isinstance(example, str):
            raise ElementError(
                f"Element {index} must be a string. Got {describe_json(example)}. Use with_preprocess_fn.",
                index=index,
            )
    return [str(example) for example in batch]


def parse_generations(
    response: Any, n_examples: int, n_choices: Any, get_text: Callable[[Mapping[str, Any]], Any]
) -> list[Generation]:
    """Return one ``Generation`` per example. ``n_choices`` is the requested number per example, None for one."""
    per_example = n_choices if isinstance(n_choices, int) and n_choices > 0 else 1
    items = _get_items(response, "choices", per_example * n_examples)
    check_depth(items)
    usage = get_usage(response) if n_examples == 1 else None
    return [
        Generation(str(get_text(choices[0])), choices[0].get("finish_reason"), choices, usage)
        for choices in split_batch(items, per_example)
    ]


def get_chat_text(choice: Mapping[str, Any]) -> str:
    """Return the text of a chat choice, or an empty string if the model called tools or functions.

    Raises:
        UnusableAnswerError: The choice has no text: the model refused, wrote only its reasoning, or its output was
            filtered, or the content has another form. The message describes which.
    """
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise UnusableAnswerError(
            f"A choice has no message: its fields are {describe_json(choice)}."
        )
    reason = choice.get("finish_reason")
    text, others = _read_content(message.get("content"))
    if text or message.get("tool_calls") or message.get("function_call"):
        return text or ""
    audio = message.get("audio")
    if isinstance(audio, Mapping) and isinstance(audio.get("transcript"), str):
        return str(audio["transcript"])
    refusal = message.get("refusal") or others.get("refusal")
    reasoning = any(
        message.get(name) for name in _REASONING_FIELDS
    ) or not _REASONING_PARTS.isdisjoint(others)
    if text is None or refusal or reasoning or reason in ("length", "content_filter"):
        raise _no_text_error(reason, refusal, reasoning, others)
    return text


def _read_content(content: Any) -> tuple[str | None, dict[str, Any]]:
    """Return the text of a message's content, None if it has none, and its parts of other types by type."""
    if content is None or isinstance(content, str):
        return content, {}
    texts, others = [], {}
    for part in content if isinstance(content, list) else [content]:
        kind = str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, Mapping):
            text = text.get("value")
        if isinstance(text, str) and kind not in _REASONING_PARTS:
            texts.append(text)
        else:
            others[kind[:40]] = part.get(kind) if isinstance(part, Mapping) else part
    return ("".join(texts) if texts else None), others


_REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
_REASONING_PARTS = frozenset(["reasoning", "thinking", "reasoning_content", "redacted_thinking"])


def _no_text_error(
    reason: Any, refusal: Any, reasoning: bool, others: Mapping[str, Any]
) -> UnusableAnswerError:
    details = [f"finish_reason {str(reason)[:40]!r}"]
    if refusal:
        details.append(f"refusal {str(refusal)[:200]!r}")
    if reasoning:
        details.append("only its reasoning")
    if unknown := [kind for kind in others if kind not in _REASONING_PARTS and kind != "refusal"]:
        details.append(f"content of type {', '.join(sorted(unknown)[:5])}")
    if reason == "content_filter":
        hint = "The server's content filter removed it."
    else:
        hint = "If finish_reason is 'length', increase max_tokens."
    return UnusableAnswerError(f"The model returned no text ({', '.join(details)}). {hint}")


def get_completion_text(choice: Mapping[str, Any]) -> str:
    """Return the text of a completion choice."""
    text = choice.get("text")
    if not isinstance(text, str):
        raise UnusableAnswerError(f"A choice has no text: its fields are {describe_json(choice)}.")
    return text


def parse_embeddings(
    response: Any, n_examples: int, fields: Mapping[str, Any] | None = None
) -> list[Any]:
    """Return one float32 vector per example from the response to an embeddings request with the given fields."""
    items = _get_items(response, "data", n_examples)
    if any(isinstance(item.get("embedding"), str) for item in items):
        output_type = (fields or {}).get("output_dtype", "float")
        if output_type != "float":
            raise UnusableAnswerError(
                f"The embeddings are base64 of type {str(output_type)[:40]!r}, and only base64 of float is "
                "supported. Remove output_dtype or encoding_format."
            )
    vectors = [_parse_embedding(item.get("embedding")) for item in items]
    if len(lengths := {len(vector) for vector in vectors}) > 1:
        raise UnusableAnswerError(f"The embeddings have different lengths {sorted(lengths)}.")
    return vectors


def get_usage(response: Any) -> dict[str, Any] | None:
    """Return the token counts of a response, if it has any."""
    usage = response.get("usage") if isinstance(response, Mapping) else None
    return dict(usage) if isinstance(usage, Mapping) else None


def _parse_embedding(embedding: Any) -> Any:
    """Parse a list of numbers, or base64 of little-endian float32."""
    try:
        if isinstance(embedding, str):
            vector = np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype("f4")
        else:
            vector = np.asarray(embedding)
            # Numbers only: NumPy would also read numbers in strings.
            with np.errstate(over="ignore"):
                vector = vector.astype(np.float32) if vector.dtype.kind in "iuf" else np.empty(0)
    except (TypeError, ValueError, RecursionError, binascii.Error):
        vector = np.empty(0)
    if (
        vector.dtype != np.float32
        or vector.ndim != 1
        or not vector.size
        or not np.isfinite(vector).all()
    ):
        raise UnusableAnswerError(f"An embedding is not a list of numbers: {repr(embedding)[:80]}.")
    return vector


def _get_items(response: Any, name: str, n: int) -> list[dict[str, Any]]:
    """Return the n items of a response, in the order of the examples."""
    items = response.get(name) if isinstance(response, Mapping) else None
    if isinstance(response, Mapping) and (response.get("error") or response.get("errors")):
        raise UnusableAnswerError(f"The response is {describe_json(response)}.")
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise UnusableAnswerError(
            f"The response has no list {name!r}: it is {describe_json(response)}. Does the server at base_url "
            "support the OpenAI API?"
        )
    for item in items:
        if item.get("error"):
            raise UnusableAnswerError(
                f"The server failed on one of the {name}: {describe_json(item)}."
            )
        if item.get("finish_reason") == "error":
            raise UnusableAnswerError(
                "The server failed before it completed its output: finish_reason is 'error'."
            )
    if len(items) != n:
        hint = " If it takes one example per request, set max_request_size=1." if n > 1 else ""
        raise ResultMismatchError(f"The server returned {len(items)} {name}, not {n}.{hint}")
    indices = [item.get("index") for item in items]
    if sorted(map(str, indices)) != sorted(map(str, range(n))):
        if any(index != indices[0] for index in indices):
            shown = ", ".join(str(index)[:20] for index in indices[:20])
            raise UnusableAnswerError(f"The {name} have indices [{shown}], not 0 to {n - 1}.")
        return items  # the server doesn't number them
    return sorted(items, key=lambda item: int(item["index"]))
