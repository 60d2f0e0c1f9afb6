"""What OpenAI's protocol asks, and what its answers say: functions of values, no network."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runinference.errors import ElementError, ResultMismatchError, UnusableAnswerError


@dataclass(frozen=True)
class Generation:
    """What a language model wrote for one example.

    Attributes:
        text: The text of the first choice; empty where the model called tools instead.
        finish_reason: Why it ended: ``"stop"``, or ``"length"`` where ``max_tokens`` cut it off.
        choices: All choices as the server sent them, with whatever else they tell: tool calls, log-probabilities.
        usage: The tokens that the server counted for the request; None if it counted none, or if several
            examples shared the request.
    """

    text: str
    finish_reason: str | None
    choices: list[dict[str, Any]]
    usage: dict[str, Any] | None


def conversation(example: Any) -> list[Any]:
    """An example as the messages of a chat.

    >>> conversation("Hello")
    [{'role': 'user', 'content': 'Hello'}]

    Raises:
        ElementError: It is neither a text nor a list of messages.
    """
    if isinstance(example, str):
        return [{"role": "user", "content": str(example)}]
    messages = list(example) if isinstance(example, (list, tuple)) else []
    if messages and all(isinstance(one, Mapping) and "role" in one for one in messages):
        return messages
    raise ElementError(
        f"An element of a chat is a text, or a list of messages such as {{'role': 'user', 'content': '...'}}; "
        f"this one is {_kind(example)}. Make it one with with_preprocess_fn."
    )


def texts(batch: Sequence[Any]) -> list[str]:
    """The examples, each of which must be a text.

    Raises:
        ElementError: One is something else.
    """
    for index, example in enumerate(batch):
        if not isinstance(example, str):
            raise ElementError(
                f"Element {index} of the request is {_kind(example)}, and must be a text. Make it one with "
                "with_preprocess_fn."
            )
    return [str(example) for example in batch]


def generations(
    answer: Any, n_examples: int, n_choices: Any, text_of: Callable[[Mapping[str, Any]], Any]
) -> list[Generation]:
    """What a language model wrote for each example of a request.

    Args:
        answer: The server's, parsed.
        n_examples: How many the request held.
        n_choices: How many choices it asked for, for each example; None for one.
        text_of: Finds the text in a choice.

    Raises:
        UnusableAnswerError: The answer is none of the protocol's, or has no text.
        ResultMismatchError: It has more or fewer choices than were asked for.
    """
    each = n_choices if isinstance(n_choices, int) and n_choices > 0 else 1
    choices = _items(answer, "choices", each * n_examples)
    usage = usage_of(answer) if n_examples == 1 else None
    return [
        Generation(str(text_of(own[0])), own[0].get("finish_reason"), own, usage)
        for own in (choices[start : start + each] for start in range(0, len(choices), each))
    ]


def said(choice: Mapping[str, Any]) -> str:
    """The text of a choice of a chat.

    Raises:
        UnusableAnswerError: There is neither a text nor a call of a tool.
    """
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise UnusableAnswerError(f"A choice has no message: its fields are {sorted(choice)}.")
    content = message.get("content")
    if isinstance(content, str):
        return content
    if message.get("tool_calls"):
        return ""
    refusal = message.get("refusal")
    raise UnusableAnswerError(
        f"The model said nothing (finish_reason {choice.get('finish_reason')!r}"
        f"{f', refusal {str(refusal)[:200]!r}' if refusal else ''}). If it ended for its length, raise max_tokens."
    )


def written(choice: Mapping[str, Any]) -> str:
    """The text of a choice of a completion.

    Raises:
        UnusableAnswerError: There is none.
    """
    text = choice.get("text")
    if not isinstance(text, str):
        raise UnusableAnswerError(f"A choice has no text: its fields are {sorted(choice)}.")
    return text


def vectors(answer: Any, n_examples: int) -> list[Any]:
    """The embedding of each example of a request, as a vector of float32.

    Raises:
        UnusableAnswerError: The answer is none of the protocol's, or what it holds are no vectors of one length.
        ResultMismatchError: It has more or fewer embeddings than the request had examples.
    """
    found = [_vector(item.get("embedding")) for item in _items(answer, "data", n_examples)]
    if len(lengths := {len(vector) for vector in found}) > 1:
        raise UnusableAnswerError(
            f"The embeddings of one request have the lengths {sorted(lengths)}."
        )
    return found


def usage_of(answer: Any) -> dict[str, Any] | None:
    """The tokens that a server counted, if it did."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    return dict(usage) if isinstance(usage, Mapping) else None


def _vector(embedding: Any) -> Any:
    """From a list of numbers, or from the base64 of little-endian float32."""
    try:
        if isinstance(embedding, str):
            vector = np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype("f4")
        else:
            vector = np.asarray(embedding, np.float32)
    except (TypeError, ValueError, binascii.Error):
        vector = np.empty(0)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise UnusableAnswerError(
            f"An embedding is no list of numbers, but {repr(embedding)[:80]}."
        )
    return vector


def _items(answer: Any, name: str, n: int) -> list[dict[str, Any]]:
    """The n items of an answer, in the order of the examples."""
    items = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise UnusableAnswerError(
            f"The answer has no list {name!r}: it is {_kind(answer)}. Is base_url the address of a server that "
            "speaks OpenAI's protocol?"
        )
    if len(items) != n:
        cure = " If it takes one example a request, set max_request_size=1." if n > 1 else ""
        raise ResultMismatchError(
            f"The server gave {len(items)} {name} where {n} were asked for.{cure}"
        )
    indices = [item.get("index") for item in items]
    if sorted(map(str, indices)) != sorted(map(str, range(n))):
        if any(index != indices[0] for index in indices):
            raise UnusableAnswerError(
                f"The {name} have the indices {indices}, and not 0 to {n - 1}."
            )
        return items  # from a server that does not number them
    return sorted(items, key=lambda item: int(item["index"]))


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        error = value.get("error")
        return f"{{{', '.join(map(repr, value))}}}" + (
            f", error {str(error)[:200]!r}" if error else ""
        )
    return f"{repr(value)[:80]} ({type(value).__name__})"
