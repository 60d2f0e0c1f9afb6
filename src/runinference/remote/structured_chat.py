"""Chats whose answers have a declared type: the request for it, and the next attempts after invalid answers."""

from __future__ import annotations

import json
import logging
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runinference.checks import check_int
from runinference.errors import (
    EndpointError,
    InvalidOutputError,
    NotCalledError,
    OptionError,
    describe,
    shorten_text,
    suggest,
)
from runinference.handlers.stable_bytes import get_class_name
from runinference.remote.openai_protocol import Generation
from runinference.remote.output_columns import get_column_type, get_field_types
from runinference.remote.output_type import AnswerError, OutputType
from runinference.results import PredictionResult

OUTPUT_MODES = ("auto", "response_format", "prompt")

_MAX_REPEATED = 4_000  # characters of an invalid answer that the next request contains
_MAX_QUOTED = 1_000  # characters of an invalid answer in an error message
#: Statuses of servers that don't support ``response_format``, or not this schema.
_REJECTED = (400, 422, 501)
#: Whether the models of a client support ``response_format``, by their names, as far as it is known.
_support: weakref.WeakKeyDictionary[Any, dict[str, bool]] = weakref.WeakKeyDictionary()
_logger = logging.getLogger(__name__)

Send = Callable[[Sequence[Any], Mapping[str, Any]], PredictionResult]


class StructuredChat:
    """Asks a model for an answer of a type, and again if the answer is invalid.

    Attributes:
        type: The type.
        column_type: The type of a column of answers; ``Any`` if it is unknown.
        field_types: The types of columns with the fields of answers, by name; None if they are unknown.

    Args:
        output_type: The type, see ``OutputType``.
        max_attempts: Maximum number of answers.
        mode: One of ``OUTPUT_MODES``.

    Raises:
        OptionError: A value is invalid.
    """

    def __init__(self, output_type: Any, max_attempts: int, mode: str) -> None:
        check_int("max_output_attempts", max_attempts)
        if mode not in OUTPUT_MODES:
            raise OptionError(
                f"output_mode must be 'auto', 'response_format' or 'prompt', but is {mode!r}."
                f"{suggest(mode, OUTPUT_MODES)}"
            )
        self.type = OutputType(output_type)
        is_schema = isinstance(output_type, Mapping)
        self.column_type = Any if is_schema else get_column_type(output_type)
        self.field_types = None if is_schema else get_field_types(output_type)
        self._max_attempts = max_attempts
        self._mode = mode
        schema = self.type.schema
        title = str(schema.get("title", "output"))
        self._fields = {
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": re.sub(r"[^a-zA-Z0-9_-]", "_", title)[:64] or "output",
                    "schema": schema,
                    "strict": self.type.is_strict,
                },
            }
        }
        self._instructions = (
            "Answer with only a JSON value that conforms to this JSON schema, without any other text:\n"
            f"{json.dumps(schema)}"
        )

    @property
    def identity(self) -> Any:
        """What answers depend on: the schema, the classes and their code, and how the server gets the schema."""
        names = [*map(get_class_name, self.classes)]
        return self._fields, names, self.type.digest, self._mode

    @property
    def classes(self) -> Sequence[type]:
        """The classes in the type, whose instances are answers."""
        return self.type.classes

    def ask(
        self,
        messages: Sequence[Any],
        send: Send,
        client: Any,
        model: str,
        on_retry: Callable[[], None],
        allow_tools: bool = False,
    ) -> Generation:
        """Return the first valid answer with its value.

        Args:
            messages: The conversation.
            send: Sends messages with additional fields, and returns a result with a ``Generation``.
            client: The client that ``send`` uses.
            model: The name of the model.
            on_retry: Called before each attempt but the first.
            allow_tools: Whether to return an answer that calls tools instead of having a value.

        Raises:
            InvalidOutputError: No answer is valid, or one is incomplete or calls a tool.
            Exception: The error of ``send``.
        """
        attempt = 1
        conversation = messages
        reason = ""
        while True:
            try:
                answer: Generation = self._send(conversation, send, client, model).inference
            except NotCalledError as error:
                if attempt == 1:
                    raise
                raise InvalidOutputError(
                    f"The model's answer doesn't have the output type: {reason}. Another attempt isn't possible. "
                    f"{error}"
                ) from None
            if allow_tools and _get_calls(answer):
                return answer
            _check_complete(answer)
            try:
                return replace(answer, value=self.type.parse(answer.text))
            except AnswerError as error:
                reason = str(error)
            if attempt == self._max_attempts:
                raise InvalidOutputError(
                    f"The model's answer doesn't have the output type: {reason}. Attempt {attempt} of {attempt} "
                    f"(max_output_attempts) returned {_quote(answer.text)}. To fix this, describe the output in "
                    "the prompt, or use a larger model."
                )
            conversation = [*messages, *self._correct(answer.text, reason)]
            attempt += 1
            on_retry()

    def build_request(self, messages: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the messages and the additional fields of a request, if its form is known (not ``"auto"``)."""
        if self._mode == "prompt":
            return self._instruct(messages), {}
        return [*messages], dict(self._fields)

    def _send(
        self, messages: Sequence[Any], send: Send, client: Any, model: str
    ) -> PredictionResult:
        """Send messages with the schema, in the form that the server supports."""
        support = _support.setdefault(client, {})
        if self._mode == "prompt" or support.get(model) is False:
            return send(self._instruct(messages), {})
        try:
            result = send(messages, self._fields)
        except EndpointError as error:
            if self._mode != "auto" or support.get(model) or error.status_code not in _REJECTED:
                raise
            rejection = error
        else:
            support[model] = True
            return result
        result = send(self._instruct(messages), {})
        if support.setdefault(model, False) is False:
            _logger.warning(
                "The server doesn't support this response_format, so the schema is added to prompts: %s",
                describe(rejection, 300),
            )
        return result

    def _instruct(self, messages: Sequence[Any]) -> list[Any]:
        """Add the schema to the last message of the user, because many chat templates take no two in a row."""
        *others, last = messages
        if last["role"] != "user":
            return [*messages, {"role": "user", "content": self._instructions}]
        content = last.get("content")
        if isinstance(content, str):
            if content.endswith(self._instructions):  # after an invalid answer
                return [*messages]
            content = f"{content}\n\n{self._instructions}"
        else:
            content = [*(content or ()), {"type": "text", "text": self._instructions}]
        return [*others, {**last, "content": content}]

    def _correct(self, answer: str, reason: str) -> list[dict[str, str]]:
        request = f"Your answer is invalid: {reason}. {self._instructions}"
        return [
            {
                "role": "assistant",
                "content": shorten_text(answer, _MAX_REPEATED) or "(no answer)",
            },
            {"role": "user", "content": request},
        ]


def _check_complete(answer: Generation) -> None:
    """Raise ``InvalidOutputError`` for an answer that another attempt would repeat, at the same cost."""
    if answer.finish_reason == "length":
        raise InvalidOutputError(
            f"The model's answer was cut off at the maximum number of tokens: {_quote(answer.text)}. To fix this, "
            "increase max_tokens in parameters."
        )
    if calls := _get_calls(answer):
        raise InvalidOutputError(
            f"The model called a tool instead of answering: {_quote(json.dumps(calls))}. To fix this, remove the "
            "tools from parameters, set keep_generation=True, or leave output_type out."
        )


def _get_calls(answer: Generation) -> Any:
    """Return the calls of tools or of a function in an answer without text."""
    message = answer.choices[0].get("message") or {}
    return not answer.text and (message.get("tool_calls") or message.get("function_call"))


def _quote(answer: str) -> str:
    return repr(shorten_text(answer, _MAX_QUOTED))
