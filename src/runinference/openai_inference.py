"""Handlers for models behind any server that speaks OpenAI's protocol: chat, completions, embeddings."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics
from typing_extensions import Unpack

from runinference.errors import OptionError
from runinference.handlers.options import accepts
from runinference.remote.endpoint import EndpointModelHandler, EndpointOptions
from runinference.remote.openai_protocol import (
    Generation,
    conversation,
    generations,
    said,
    texts,
    usage_of,
    vectors,
    written,
)
from runinference.results import PredictionResult

__all__ = [
    "Generation",
    "OpenAIChatModelHandler",
    "OpenAICompletionsModelHandler",
    "OpenAIEmbeddingsModelHandler",
    "OpenAIModelHandler",
]


class OpenAIModelHandler(EndpointModelHandler):
    """What the handlers have in common: the model's name, the fields of requests, the tokens counted."""

    _path = ""
    _input = ""

    @accepts(EndpointOptions)
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
        """Names the server and its model.

        Args:
            base_url: The address of the server's API; that of most servers ends in ``/v1``.
            model: The model's name on that server.
            api_key_env: The environment variable of the workers that holds the key; None for a server that asks
                for none. The key itself is read on the workers, and is no part of the handler.
            parameters: Fields of each request, such as ``{"temperature": 0, "max_tokens": 50}``. Those of
                ``inference_args`` come before them.
            max_request_size: The most examples in a request; by default what each server takes.
            **options: The options of every remote handler; ``timeout``, ``headers`` and ``key_over_http``, see
                ``EndpointModelHandler``.

        Raises:
            OptionError: A value is out of range, the address holds a secret, the key would travel unencrypted,
                or a parameter is not yours to set.
            ImportError: httpx or tenacity is not installed.
        """
        size = self._request_size(max_request_size)
        super().__init__(base_url, api_key_env, max_request_size=size, **options)
        url = self._endpoint.base_url
        if url.endswith(self._path):
            raise OptionError(
                f"base_url ends in {self._path}, which is appended to it. Leave that out: "
                f"base_url={url.removesuffix(self._path)!r}."
            )
        self._model = model
        self._parameters = dict(parameters or {})
        self._check_fields("parameters", self._parameters)

    def request(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        """One ``PredictionResult`` for each example; ``inference_args`` are fields of the request.

        Raises:
            ElementError: An example is not what the model takes.
            EndpointError: The server was not reached, refused, failed, or did not answer as the protocol has it.
            ResultMismatchError: It answered for more or fewer examples than it was asked about.
        """
        fields = {**self._parameters, **(inference_args or {})}
        asked = {"model": self._model, **fields, self._input: self._asked(batch)}

        def read(answer: Any) -> list[Any]:
            self._count_tokens(answer)
            return self._results(answer, len(batch), fields)

        results = model.post(self._path, asked, read)
        return [PredictionResult(x, y, self._model) for x, y in zip(batch, results, strict=True)]

    @abstractmethod
    def _asked(self, batch: Sequence[Any]) -> Any:
        """What the request asks about."""

    @abstractmethod
    def _results(self, answer: Any, n: int, fields: Mapping[str, Any]) -> list[Any]:
        """What the answer says of each of n examples."""

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Checks the fields of requests.

        Raises:
            OptionError: A field is not yours to set, or cannot be written as JSON.
        """
        self._check_fields("inference_args", inference_args or {})

    def update_model_path(self, model_path: str | None = None) -> None:
        """Says that the model has another name from now on."""
        self._model = model_path or self._model

    def get_metrics_namespace(self) -> str:
        return "BeamML_OpenAI"

    def _request_size(self, asked: int | None) -> int:
        """How many examples share a request, where so many are asked for."""
        return 1 if asked is None else asked

    def _check_fields(self, option: str, fields: Mapping[str, Any]) -> None:
        cures = {
            "model": "Name the model when you make the handler: model=...",
            "stream": "Leave it out: an answer is read as a whole.",
            self._input: "It is what the elements are.",
        }
        for name in fields:
            if name in cures:
                raise OptionError(f"{option} has {name!r}. {cures[name]}")
        try:
            json.dumps(fields)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"{option} cannot be written as JSON ({error}). Give numbers, texts, lists and dictionaries."
            ) from error

    def _count_tokens(self, answer: Any) -> None:
        usage = usage_of(answer) or {}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            if isinstance(n := usage.get(name), int):
                Metrics.counter(self.get_metrics_namespace(), name).inc(n)


class OpenAIChatModelHandler(OpenAIModelHandler):
    """Asks a chat model: one conversation is one request, and a ``Generation`` its result.

    An example is a text, which the user says; or a list of messages, each a dictionary with its ``role`` and
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

    def _request_size(self, asked: int | None) -> int:
        if asked not in (None, 1):
            raise OptionError(
                "A request of a chat holds one conversation: leave max_request_size out. Requests run together, "
                "see max_concurrent_requests."
            )
        return 1

    def _asked(self, batch: Sequence[Any]) -> Any:
        return conversation(batch[0])

    def _results(self, answer: Any, n: int, fields: Mapping[str, Any]) -> list[Generation]:
        return generations(answer, n, fields.get("n"), said)


class OpenAICompletionsModelHandler(OpenAIModelHandler):
    """Lets a language model go on with a text: an example is a text, and a ``Generation`` its result.

    Each text is a request, since not every server takes several in one; ``max_request_size`` says how many yours
    takes.

    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAICompletionsModelHandler(base_url, model="shout", api_key_env=None)
    ...     [result] = handler.predict(["once upon a time"])
    >>> result.inference.text
    'ONCE UPON A TIME'
    """

    _path = "/completions"
    _input = "prompt"

    def _asked(self, batch: Sequence[Any]) -> Any:
        prompts = texts(batch)
        return prompts[0] if len(prompts) == 1 else prompts

    def _results(self, answer: Any, n: int, fields: Mapping[str, Any]) -> list[Generation]:
        return generations(answer, n, fields.get("n"), written)


class OpenAIEmbeddingsModelHandler(OpenAIModelHandler):
    """Asks for embeddings of texts, up to 32 in a request; each result is a vector of float32.

    >>> from runinference.samples import servers
    >>> with servers.llm() as base_url:
    ...     handler = OpenAIEmbeddingsModelHandler(base_url, model="words", api_key_env=None)
    ...     cat, cats, dog = handler.predict(["a cat", "a cat and a cat", "the dog"])
    >>> bool(cat.inference @ cats.inference > cat.inference @ dog.inference)
    True
    """

    _path = "/embeddings"
    _input = "input"

    def _request_size(self, asked: int | None) -> int:
        return 32 if asked is None else asked

    def _asked(self, batch: Sequence[Any]) -> Any:
        return texts(batch)

    def _results(self, answer: Any, n: int, fields: Mapping[str, Any]) -> list[Any]:
        return vectors(answer, n)
