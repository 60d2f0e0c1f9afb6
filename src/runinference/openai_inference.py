"""Handlers for servers with an OpenAI-compatible API: chat, completions and embeddings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics
from typing_extensions import Unpack

from runinference.checks import check_mapping, check_text
from runinference.errors import OptionError
from runinference.handlers.event_loop import resolve
from runinference.handlers.options import accepts
from runinference.remote.endpoint import EndpointModelHandler, EndpointOptions, check_json_fields
from runinference.remote.handler import RemoteModelHandler, RemoteOptions
from runinference.remote.openai_client import (
    ProcessSecret,
    check_client_options,
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
    get_usage,
    parse_embeddings,
    parse_generations,
    to_messages,
    to_strings,
)
from runinference.results import PredictionResult

__all__ = [
    "Generation",
    "OpenAIChatModelHandler",
    "OpenAICompletionsModelHandler",
    "OpenAIEmbeddingsModelHandler",
    "OpenAIModelHandler",
    "chat_completion_from_conversation",
    "chat_completion_from_string",
    "embedding_from_string",
]


class OpenAIEndpointModelHandler(EndpointModelHandler):
    """The base class of the handlers for chat, completions and embeddings."""

    _metrics_namespace = "BeamML_OpenAI"
    _keeps_examples = True
    _path = ""
    _input = ""
    _default_request_size = 1

    @accepts(EndpointModelHandler.__init__)
    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        *,
        parameters: Mapping[str, Any] | None = None,
        max_request_size: int | None = None,
        **options: Unpack[EndpointOptions],
    ) -> None:
        """Configure the server and its model. This sends nothing and reads no key.

        Args:
            base_url: URL of the server's API, which usually ends in ``/v1``.
            model: Name of the model on that server.
            api_key_env: Environment variable of the workers that holds the key. None if the server needs no key.
                Workers read the key. The handler doesn't store it.
            parameters: Fields of each request, such as ``{"temperature": 0, "max_tokens": 50}``.
                ``inference_args`` override them.
            max_request_size: Maximum number of examples in a request. By default a number that every server
                accepts.
            **options: The options of every remote handler, see ``RemoteModelHandler``, and ``timeout``,
                ``headers``, ``key_over_http`` and ``max_response_bytes``, see ``EndpointModelHandler``.

        Raises:
            OptionError: A value is out of range, the URL contains a secret, the key would be sent unencrypted,
                or ``parameters`` has a reserved field.
            ImportError: httpx or tenacity isn't installed.
        """
        size = self._resolve_request_size(max_request_size)
        super().__init__(base_url, api_key_env, max_request_size=size, **options)
        url = self._endpoint.base_url
        if url.endswith(self._path):
            raise OptionError(
                f"base_url ends in {self._path}, which is appended to it. To fix this, set "
                f"base_url={url.removesuffix(self._path)!r}."
            )
        check_text("model", model)
        if parameters is not None:
            check_mapping("parameters", parameters)
        self._model = model
        self._parameters = dict(parameters or {})
        self._check_fields("parameters", self._parameters)

    _keeps_examples = True

    def request(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        """Send one request, and return one ``PredictionResult`` per example.

        Args:
            batch: The examples.
            model: The client that ``create_client`` returned.
            inference_args: Fields of the request. They override ``parameters``.

        Raises:
            ElementError: An example has the wrong type.
            EndpointError: The server is unreachable, or its response is an error or invalid.
            ResultMismatchError: The server returned the wrong number of results.
        """
        fields = {**self._parameters, **(inference_args or {})}
        body = {"model": self._model, **fields, self._input: self._build_input(batch)}

        def parse(response: Any) -> list[Any]:
            self._count_tokens(response)
            return self._parse_results(response, len(batch), fields)

        results = model.post(self._path, body, parse)
        return [PredictionResult(x, y, self._model) for x, y in zip(batch, results, strict=True)]

    @abstractmethod
    def _build_input(self, batch: Sequence[Any]) -> Any:
        """Return the value of the request's input field."""

    @abstractmethod
    def _parse_results(self, response: Any, n: int, fields: Mapping[str, Any]) -> list[Any]:
        """Return one result for each of n examples."""

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Check the fields of requests.

        Raises:
            OptionError: A field is reserved, or can't be written as JSON.
        """
        self._check_fields("inference_args", inference_args or {})

    def may_modify_examples(self) -> bool:
        is_ours = type(self).request is OpenAIEndpointModelHandler.request
        return not is_ours or super().may_modify_examples()

    def update_model_path(self, model_path: str | None = None) -> None:
        """Set the name of the model to call."""
        self._model = model_path or self._model

    def _resolve_request_size(self, max_request_size: int | None) -> int:
        return self._default_request_size if max_request_size is None else max_request_size

    def _check_fields(self, option: str, fields: Mapping[str, Any]) -> None:
        hints = {
            "model": "Pass model to the handler's constructor instead.",
            "stream": "Remove it. Streaming is not supported.",
            self._input: "Remove it. Its value is the batch of elements.",
        }
        for name in fields:
            if name in hints:
                raise OptionError(f"{option} has {name!r}. {hints[name]}")
        check_json_fields(option, fields)

    def _count_tokens(self, response: Any) -> None:
        usage = get_usage(response) or {}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            if isinstance(n := usage.get(name), int):
                Metrics.counter(self.get_metrics_namespace(), name).inc(n)


class OpenAIChatModelHandler(OpenAIEndpointModelHandler):
    """A handler for chat models. Each conversation is one request, and its result is a ``Generation``.

    An example is a string, which becomes a user message, or a list of messages: dictionaries with ``role`` and
    ``content``.

    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAIChatModelHandler(base_url, model="shout", api_key_env=None)
    ...     [result] = handler.predict(["Is anybody there?"])
    >>> result.inference.text
    'IS ANYBODY THERE?'
    """

    _path = "/chat/completions"
    _input = "messages"

    def _resolve_request_size(self, max_request_size: int | None) -> int:
        if max_request_size not in (None, 1):
            raise OptionError(
                "A chat request contains one conversation. To fix this, remove max_request_size. Requests run "
                "concurrently, see max_concurrent_requests."
            )
        return 1

    def _build_input(self, batch: Sequence[Any]) -> Any:
        return to_messages(batch[0])

    def _parse_results(self, response: Any, n: int, fields: Mapping[str, Any]) -> list[Generation]:
        return parse_generations(response, n, fields.get("n"), get_chat_text)


class OpenAICompletionsModelHandler(OpenAIEndpointModelHandler):
    """A handler for language models that complete texts. Examples are strings, results are ``Generation``.

    By default each text is one request, because some servers don't accept several. If yours does, set
    ``max_request_size``.

    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAICompletionsModelHandler(base_url, model="shout", api_key_env=None)
    ...     [result] = handler.predict(["once upon a time"])
    >>> result.inference.text
    'ONCE UPON A TIME'
    """

    _path = "/completions"
    _input = "prompt"

    def _build_input(self, batch: Sequence[Any]) -> Any:
        prompts = to_strings(batch)
        return prompts[0] if len(prompts) == 1 else prompts

    def _parse_results(self, response: Any, n: int, fields: Mapping[str, Any]) -> list[Generation]:
        return parse_generations(response, n, fields.get("n"), get_completion_text)


class OpenAIEmbeddingsModelHandler(OpenAIEndpointModelHandler):
    """A handler for embedding models, with 32 texts per request by default. Each result is a float32 vector.

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

    def _build_input(self, batch: Sequence[Any]) -> Any:
        return to_strings(batch)

    def _parse_results(self, response: Any, n: int, fields: Mapping[str, Any]) -> list[Any]:
        return parse_embeddings(response, n, fields)


RequestFn = Callable[[str, Sequence[Any], Any, dict[str, Any]], Any]


class OpenAIModelHandler(RemoteModelHandler[Any, PredictionResult, Any]):
    """A handler that sends requests with a function and a client of the package ``openai``, as in Beam.

    If ``openai`` isn't installed, the function gets a client of this library. It has the methods
    ``chat.completions.create``, ``completions.create``, ``embeddings.create`` and ``responses.create``, whose
    results have the same attributes.

    For new programs, ``OpenAIChatModelHandler``, ``OpenAICompletionsModelHandler`` and
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
            request_fn: Called with the model's name, a batch, the client and a dictionary of ``inference_args``.
                Returns one response per example. It may be a coroutine function.
                ``chat_completion_from_string``, ``chat_completion_from_conversation`` and
                ``embedding_from_string`` are such functions.
            api_key: The key, or a function that returns it. A function is called on the workers. A key stays in
                this process: it isn't stored in the pipeline, and other processes read the environment variable
                ``OPENAI_API_KEY``, as they do by default.
            organization: ID of the organization. By default the environment variable ``OPENAI_ORG_ID``.
            project: ID of the project. By default the environment variable ``OPENAI_PROJECT_ID``.
            base_url: URL of the server's API. By default the environment variable ``OPENAI_BASE_URL``, or that of
                OpenAI.
            client_args: Additional arguments for the client, such as ``timeout`` and ``default_headers``. They
                must not contain secrets.
            max_request_size: Maximum number of examples in a call of ``request_fn``. By default 1 for the chat
                functions of this module, 32 for its embedding function, and the whole batch for others.
            **options: The options of every remote handler, see ``RemoteModelHandler``.

        Raises:
            OptionError: A value is out of range, or ``base_url`` or ``client_args`` contains a secret.
            ImportError: tenacity isn't installed, or neither openai nor httpx is.
        """
        if max_request_size is None:
            max_request_size = _REQUEST_SIZES.get(request_fn)
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

    @property
    def api_key(self) -> str | Callable[[], str] | None:
        """The key or function that was given. None in other processes, which don't get the key."""
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
            inference_args: Arguments for the request function.

        Raises:
            Exception: The error of the client. If its message contains the key, an ``EndpointError``.
        """
        try:
            responses = resolve(
                self.request_fn(self.model_name, batch, model, dict(inference_args or {}))
            )
        except Exception as error:
            redacted = redact_key(error, self._resolve_key())
            if redacted is error:
                raise
        else:
            if isinstance(responses, (Iterator, tuple)):
                responses = list(responses)
            return self.results_of(batch, responses, self.model_name)
        raise redacted

    def _resolve_key(self) -> str | None:
        if callable(self._get_key):
            return self._get_key()
        return resolve_key(self._secret)


def chat_completion_from_string(
    model_name: str, batch: Sequence[str], client: Any, inference_args: dict[str, Any]
) -> list[Any]:
    """Send each string as a user message to the chat completions API, concurrently.

    Args:
        model_name: Name of the model.
        batch: The messages.
        client: A client of the package ``openai``, or one with the same methods.
        inference_args: Arguments of ``chat.completions.create``. ``system`` is the text of a system message.

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
        inference_args: Arguments of ``chat.completions.create``. ``system`` is the text of a system message.

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
        inference_args: Arguments of ``embeddings.create``.

    Returns:
        One ``Embedding`` per string, in order.

    Raises:
        EndpointError: The response does not have one embedding per string.
    """
    return create_embeddings(model_name, to_strings(batch), client, inference_args)


_REQUEST_SIZES: dict[Any, int] = {
    chat_completion_from_string: 1,
    chat_completion_from_conversation: 1,
    embedding_from_string: 32,
}
