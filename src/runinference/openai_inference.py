"""Handlers for servers with an OpenAI-compatible API: chat, completions and embeddings."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from typing_extensions import Unpack

from runinference.checks import check_callable, check_int, check_mapping, check_text
from runinference.errors import OptionError
from runinference.handlers.event_loop import resolve
from runinference.handlers.options import accepts
from runinference.remote.auth import AwsSigV4
from runinference.remote.batch_api import BatchApi
from runinference.remote.cost_estimate import CostEstimate, Estimate, estimate
from runinference.remote.handler import RemoteModelHandler, RemoteOptions
from runinference.remote.headers import check_key
from runinference.remote.local_server import LocalServer
from runinference.remote.message_parts import audio_part, image_part
from runinference.remote.openai_batch import (
    OpenAIBatchModelHandler,
    OpenAIBatchOptions,
)
from runinference.remote.openai_client import (
    check_client_options,
    check_organization,
    complete_chats,
    create_embeddings,
    create_openai_client,
    redact_key,
    resolve_key,
)
from runinference.remote.openai_protocol import (
    Generation,
    get_chat_text,
    get_completion_text,
    parse_embeddings,
    parse_generations,
    to_messages,
    to_strings,
)
from runinference.remote.process_secret import ProcessSecret
from runinference.remote.structured_handler import StructuredModelHandler
from runinference.remote.token_usage import Prices
from runinference.results import PredictionResult

__all__ = [
    "AwsSigV4",
    "BatchApi",
    "CostEstimate",
    "Estimate",
    "Generation",
    "LocalServer",
    "OpenAIChatModelHandler",
    "OpenAICompletionsModelHandler",
    "OpenAIEmbeddingsModelHandler",
    "OpenAIModelHandler",
    "Prices",
    "RequestFn",
    "audio_part",
    "chat_completion_from_conversation",
    "chat_completion_from_string",
    "embedding_from_string",
    "estimate",
    "image_part",
]


class OpenAIChatModelHandler(StructuredModelHandler):
    """A handler for chat models. Each conversation is one request, and its result is a ``Generation``.

    An example is a string, which becomes a user message, or a list of messages: dictionaries with ``role`` and
    ``content``. For images and audio, see ``image_part`` and ``audio_part``.

    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAIChatModelHandler(base_url, model="shout", api_key_env=None)
    ...     [result] = handler.predict(["Is anybody there?"])
    >>> result.inference.text
    'IS ANYBODY THERE?'

    With ``output_type``, results are values of a type:

    >>> from typing import Literal
    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAIChatModelHandler(base_url, "shout", None, output_type=Literal["good", "bad"])
    ...     [result] = handler.predict(["It was good."])
    >>> result.inference
    'good'
    """

    _path = "/chat/completions"
    _input = "messages"

    @accepts(OpenAIBatchModelHandler.__init__)
    def __init__(
        self,
        base_url: str | LocalServer,
        model: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        *,
        output_type: Any = None,
        max_output_attempts: int | None = None,
        output_mode: Literal["auto", "response_format", "prompt"] | None = None,
        keep_generation: bool = False,
        **options: Unpack[OpenAIBatchOptions],
    ) -> None:
        """Configure the server, its model, and the type of its answers. This sends nothing and reads no key.

        Args:
            base_url: URL of the server's API, which usually ends in ``/v1``, or a ``LocalServer``.
            model: Name of the model on that server.
            api_key_env: Name of the environment variable that contains the API key on the workers. The handler
                doesn't store the key. None if the server needs no key. The default isn't read if ``auth`` is set
                or the server is a ``LocalServer``.
            output_type: Type of the answers: a pydantic model, a dataclass, ``Literal[...]``, another type that
                pydantic supports, or a JSON schema as a dictionary. The result of an example is then a value of
                this type instead of a ``Generation``, or the JSON value if it is a schema. None for text.
            max_output_attempts: Maximum number of answers to an example, by default 3. After an invalid answer,
                the model is asked again with a description of the error.
            output_mode: How the server gets the schema of ``output_type``. ``"response_format"``: in the field
                ``response_format`` of the request. ``"prompt"``: in the last message. ``"auto"``, the default: in
                ``response_format``, and in the last message if the server rejects the first request.
            keep_generation: Whether results with ``output_type`` are ``Generation`` objects, whose field ``value``
                is the value. They also have the token counts, tool calls and reasoning of the answer. If the model
                calls tools instead of answering, ``value`` is None.
            **options: ``parameters``, the options of every endpoint, see ``EndpointModelHandler``, and those of
                every remote handler, see ``RemoteModelHandler``.

        Raises:
            OptionError: A value is invalid, the URL contains a secret, the key would be sent unencrypted,
                ``parameters`` has a reserved field, or ``output_type`` has no JSON schema.
            ImportError: httpx or tenacity isn't installed, or pydantic or jsonschema for ``output_type``.
        """
        mode = output_mode
        if options.get("batch_api") is not None and output_mode in (None, "auto"):
            mode = "response_format"  # it can't be tried out for the requests of a batch
        if output_mode is not None and output_type is None:
            raise OptionError(
                "output_mode has no effect without output_type. To fix this, pass output_type, or leave it out."
            )
        self._set_output_type(output_type, max_output_attempts, mode or "auto", keep_generation)
        super().__init__(base_url, model, api_key_env, **options)

    def _resolve_request_size(self, max_request_size: int | None) -> int:
        if max_request_size is not None:
            check_int("max_request_size", max_request_size)
        if max_request_size not in (None, 1):
            raise OptionError(
                "A chat request contains one conversation. To fix this, remove max_request_size. Requests run "
                "concurrently, see max_concurrent_requests."
            )
        return 1

    def _build_input(self, batch: Sequence[Any]) -> Any:
        return to_messages(batch[0])

    def _to_messages(self, example: Any) -> list[Any]:
        return to_messages(example)

    def _parse_results(self, response: Any, n: int, fields: Mapping[str, Any]) -> list[Generation]:
        return parse_generations(response, n, fields.get("n"), get_chat_text)


class OpenAICompletionsModelHandler(StructuredModelHandler):
    """A handler for language models that complete texts. Each result is a ``Generation``.

    Examples are strings. By default, each request contains one example, because some servers don't accept several.
    If your server does, set ``max_request_size``.

    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAICompletionsModelHandler(base_url, model="shout", api_key_env=None)
    ...     [result] = handler.predict(["once upon a time"])
    >>> result.inference.text
    'ONCE UPON A TIME'
    """

    _path = "/completions"
    _input = "prompt"

    @accepts(OpenAIBatchModelHandler.__init__)
    def __init__(
        self,
        base_url: str | LocalServer,
        model: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        *,
        output_type: Any = None,
        max_output_attempts: int | None = None,
        keep_generation: bool = False,
        **options: Unpack[OpenAIBatchOptions],
    ) -> None:
        """Configure the server, its model, and the type of its answers. This sends nothing and reads no key.

        Args:
            base_url: URL of the server's API, which usually ends in ``/v1``, or a ``LocalServer``.
            model: Name of the model on that server.
            api_key_env: Name of the environment variable that contains the API key on the workers. The handler
                doesn't store the key. None if the server needs no key. The default isn't read if ``auth`` is set
                or the server is a ``LocalServer``.
            output_type: Type of the answers, see ``OpenAIChatModelHandler``. Its JSON schema is added to the
                prompt. None for text.
            max_output_attempts: Maximum number of answers to an example, by default 3. After an invalid answer,
                the prompt is sent again, followed by the answer and a description of the error.
            keep_generation: Whether results with ``output_type`` are ``Generation`` objects, whose field ``value``
                is the value.
            **options: ``max_request_size``, which must be 1 with ``output_type``; ``parameters``; the options of
                every endpoint, see ``EndpointModelHandler``; and those of every remote handler, see
                ``RemoteModelHandler``.

        Raises:
            OptionError: A value is invalid, the URL contains a secret, the key would be sent unencrypted,
                ``parameters`` has a reserved field, or ``output_type`` has no JSON schema.
            ImportError: httpx or tenacity isn't installed, or pydantic or jsonschema for ``output_type``.
        """
        size = options.get("max_request_size")
        if output_type is not None and size not in (None, 1):
            raise OptionError(
                f"With output_type, a request contains one example, but max_request_size is {size!r}. To fix "
                "this, remove one of them."
            )
        self._set_output_type(output_type, max_output_attempts, "prompt", keep_generation)
        super().__init__(base_url, model, api_key_env, **options)

    def _to_messages(self, example: Any) -> list[Any]:
        [prompt] = to_strings([example])
        return [{"role": "user", "content": prompt}]

    def _from_messages(self, messages: Sequence[Any]) -> Any:
        return "\n\n".join(message["content"] for message in messages)

    def _build_input(self, batch: Sequence[Any]) -> Any:
        prompts = to_strings(batch)
        return prompts[0] if len(prompts) == 1 else prompts

    def _parse_results(self, response: Any, n: int, fields: Mapping[str, Any]) -> list[Generation]:
        return parse_generations(response, n, fields.get("n"), get_completion_text)


class OpenAIEmbeddingsModelHandler(OpenAIBatchModelHandler):
    """A handler for embedding models. Each result is a float32 array of shape ``(dimensions,)``.

    Examples are strings. By default, a request contains up to 32 examples.

    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAIEmbeddingsModelHandler(base_url, model="words", api_key_env=None)
    ...     cat, cats, dog = handler.predict(["a cat", "a cat and a cat", "the dog"])
    >>> bool(cat.inference @ cats.inference > cat.inference @ dog.inference)
    True
    """

    _path = "/embeddings"
    _input = "input"
    _default_request_size = 32
    _has_output_tokens = False

    def _build_input(self, batch: Sequence[Any]) -> Any:
        return to_strings(batch)

    def _parse_results(self, response: Any, n: int, fields: Mapping[str, Any]) -> list[Any]:
        return parse_embeddings(response, n, fields)


RequestFn = Callable[
    [str, Sequence[Any], Any, dict[str, Any]], Iterable[Any] | Awaitable[Iterable[Any]]
]
"""A ``request_fn``: ``(model_name, batch, client, inference_args)`` to one response per example."""


class OpenAIModelHandler(RemoteModelHandler[Any, PredictionResult, Any]):
    """A handler that sends requests with a function and a client of the package ``openai``, as in Beam.

    If ``openai`` isn't installed, the function gets a client of this library. It has the methods
    ``chat.completions.create``, ``completions.create``, ``embeddings.create`` and ``responses.create``, whose
    results have the same attributes.

    For new pipelines, ``OpenAIChatModelHandler``, ``OpenAICompletionsModelHandler`` and
    ``OpenAIEmbeddingsModelHandler`` are simpler.

    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAIModelHandler("shout", chat_completion_from_string, "no key", base_url=base_url)
    ...     [result] = handler.predict(["Is anybody there?"])
    >>> result.inference.choices[0].message.content
    'IS ANYBODY THERE?'
    """

    _metrics_namespace = "BeamML_OpenAI"
    _path_attribute = "model_name"

    @accepts(RemoteModelHandler.__init__)
    def __init__(
        self,
        model_name: str,
        request_fn: RequestFn,
        api_key: str | Callable[[], str] | None = None,
        *,
        organization: str | None = None,
        project: str | None = None,
        base_url: str | None = None,
        client_args: Mapping[str, Any] | None = None,
        max_request_size: int | None = None,
        **options: Unpack[RemoteOptions],
    ) -> None:
        """Configure the model and the client. This sends nothing.

        Args:
            model_name: Name of the model.
            request_fn: A function ``(model_name, batch, client, inference_args)`` that returns one response per
                example, such as ``chat_completion_from_string``, ``chat_completion_from_conversation`` or
                ``embedding_from_string``. It may be a coroutine function.
            api_key: The API key, or a function that returns it. A function is called on the workers. A key stays
                in this process and isn't stored in the pipeline. Other processes read the environment variable
                ``OPENAI_API_KEY``. By default, all processes do.
            organization: ID of the organization. By default the environment variable ``OPENAI_ORG_ID``.
            project: ID of the project. By default the environment variable ``OPENAI_PROJECT_ID``.
            base_url: URL of the server's API. By default the environment variable ``OPENAI_BASE_URL``, or else the
                URL of OpenAI's API.
            client_args: Additional arguments for the client, such as ``timeout`` and ``default_headers``. They
                must not contain secrets.
            max_request_size: Maximum number of examples in a call of ``request_fn``. By default 1 for the chat
                functions of this module, 32 for its embedding function, and the whole batch for others.
            **options: The options of every remote handler, see ``RemoteModelHandler``.

        Raises:
            OptionError: A value is invalid, or ``base_url`` or ``client_args`` contains a secret.
            ImportError: tenacity isn't installed, or neither openai nor httpx is.
        """
        check_text("model_name", model_name)
        check_callable("request_fn", request_fn)
        if not (api_key is None or isinstance(api_key, str) or callable(api_key)):
            raise OptionError(
                "api_key must be a key as text, a function that returns it, or None, but is of type "
                f"{type(api_key).__name__}."
            )
        if isinstance(api_key, str):
            check_text("api_key", api_key.strip())
            api_key = check_key(api_key, "api_key")
        check_organization("organization", organization)
        check_organization("project", project)
        if client_args is not None:
            check_mapping("client_args", client_args)
        if max_request_size is None:
            max_request_size = next((n for f, n in _REQUEST_SIZES if f is request_fn), None)
        options.setdefault("namespace", "OpenAIModelHandler")
        super().__init__(max_request_size=max_request_size, **options)
        self.model_name = model_name
        self.request_fn = request_fn
        self.organization = organization
        self.project = project
        self.base_url = base_url
        self.client_args = None if client_args is None else dict(client_args)
        self._secret = ProcessSecret(api_key) if isinstance(api_key, str) else None
        self._get_key = None if isinstance(api_key, str) else api_key
        check_client_options(base_url, self.client_args)
        for name in ("organization", "project"):
            check_organization(name, (client_args or {}).get(name))

    @property
    def api_key(self) -> str | Callable[[], str] | None:
        """The API key or function that was given. None for a key in other processes, which don't get it."""
        return self._secret.value if self._secret is not None else self._get_key

    def create_client(self) -> Any:
        """Create a client of the package ``openai``, or of this library if it isn't installed.

        Raises:
            OptionError: There is no key.
        """
        return create_openai_client(
            self._resolve_key(),
            {
                "organization": self.organization,
                "project": self.project,
                "base_url": self.base_url,
                **(self.client_args or {}),
            },
            max_connections=self.max_concurrent_requests,
        )

    def request(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Call the request function, and return one ``PredictionResult`` per example.

        Args:
            batch: The examples.
            model: The client that ``create_client`` returned.
            inference_args: Arguments for the request function, or None.

        Raises:
            Exception: The error of the client. If its message contains the key, an ``EndpointError`` instead.
        """
        try:
            responses = resolve(
                self.request_fn(self.model_name, batch, model, dict(inference_args or {}))
            )
        except Exception as error:
            redacted = redact_key(error, model)
            if redacted is error:
                raise
        else:
            if isinstance(responses, (Iterator, tuple)):
                responses = list(responses)
            return self.results_of(batch, responses, self.model_name)
        raise redacted

    _without_effect = frozenset({"_get_key", "_secret"})

    def get_result_options(self) -> dict[str, Any]:
        url = self.base_url or os.environ.get("OPENAI_BASE_URL")
        return {**super().get_result_options(), "base_url": url}

    def get_result_types(self) -> Sequence[type | str]:
        return ["openai.types."]  # data classes of the package openai

    def _resolve_key(self) -> str | None:
        if callable(self._get_key):
            return check_key(self._get_key(), "The key that the function api_key returned")
        return resolve_key(self._secret)


def chat_completion_from_string(
    model_name: str, batch: Sequence[str], client: Any, inference_args: dict[str, Any]
) -> list[Any]:
    """Send each string as a user message to the chat completions API, concurrently.

    Args:
        model_name: Name of the model.
        batch: The messages.
        client: A client of the package ``openai``, or one with the same methods.
        inference_args: Keyword arguments for ``chat.completions.create``. The additional argument ``system`` is
            the text of a system message.

    Returns:
        One ``ChatCompletion`` per string, in order.

    Raises:
        EndpointError: A response has no choices.
    """
    conversations = [to_messages(text) for text in to_strings(batch)]
    return complete_chats(model_name, conversations, client, inference_args)


def chat_completion_from_conversation(
    model_name: str,
    batch: Sequence[list[dict[str, Any]]],
    client: Any,
    inference_args: dict[str, Any],
) -> list[Any]:
    """Send each conversation to the chat completions API, concurrently.

    Args:
        model_name: Name of the model.
        batch: The conversations: lists of messages, which are dictionaries with ``role`` and ``content``.
        client: A client of the package ``openai``, or one with the same methods.
        inference_args: Keyword arguments for ``chat.completions.create``. The additional argument ``system`` is
            the text of a system message.

    Returns:
        One ``ChatCompletion`` per conversation, in order.

    Raises:
        EndpointError: A response has no choices.
    """
    conversations = [to_messages(messages) for messages in batch]
    return complete_chats(model_name, conversations, client, inference_args)


def embedding_from_string(
    model_name: str, batch: Sequence[str], client: Any, inference_args: dict[str, Any]
) -> list[Any]:
    """Send a batch of strings to the embeddings API in one request.

    Args:
        model_name: Name of the model.
        batch: The texts.
        client: A client of the package ``openai``, or one with the same methods.
        inference_args: Keyword arguments for ``embeddings.create``.

    Returns:
        One ``Embedding`` per string, in order.

    Raises:
        EndpointError: The response does not have one embedding per string.
    """
    return create_embeddings(model_name, to_strings(batch), client, inference_args)


#: Pairs, because a function of the user may not be hashable.
_REQUEST_SIZES: list[tuple[Any, int]] = [
    (chat_completion_from_string, 1),
    (chat_completion_from_conversation, 1),
    (embedding_from_string, 32),
]
