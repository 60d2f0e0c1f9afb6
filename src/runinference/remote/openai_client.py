"""The client of ``OpenAIModelHandler``, its key, and the requests that its request functions make."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from runinference.checks import check_mapping, check_text, is_secret_value
from runinference.errors import EndpointError, OptionError, ResultMismatchError, UnusableAnswerError
from runinference.remote.endpoint import is_local, normalize_url
from runinference.remote.error_response import find_error, shorten
from runinference.remote.headers import SECRET_NAME, check_headers, check_key
from runinference.remote.http_client import HttpClient
from runinference.remote.json_text import check_depth
from runinference.remote.process_secret import ProcessSecret

_KEY_VARIABLE = "OPENAI_API_KEY"
_DEFAULT_URL = "https://api.openai.com/v1"
_TIMEOUT_SECS = 600.0  # as in the package openai
_MAX_THREADS = 32
_SECRET_ARGUMENTS = frozenset(["admin_api_key", "api_key", "webhook_secret", "workload_identity"])
# Fields of the API that a response may leave out.
_OPTIONAL_FIELDS = frozenset(
    [
        "annotations",
        "audio",
        "content",
        "finish_reason",
        "function_call",
        "index",
        "logprobs",
        "output",
        "reasoning_content",
        "refusal",
        "service_tier",
        "system_fingerprint",
        "tool_calls",
        "usage",
    ]
)


def resolve_key(secret: ProcessSecret | None) -> str | None:
    """Return the key of this process, or that of the environment.

    Raises:
        OptionError: The key was given in another process, and the environment of this one has none.
    """
    key = secret.value if secret is not None else None
    if key is None:
        name = f"The environment variable {_KEY_VARIABLE}"
        key = check_key(os.environ.get(_KEY_VARIABLE, ""), name) or None
    if key is None and secret is not None:
        raise OptionError(
            "api_key was given to the handler in another process, and keys are not stored in pipelines. To fix "
            f"this, set the environment variable {_KEY_VARIABLE} on each worker, or let api_key be a function "
            "that returns the key."
        )
    return key


def check_client_options(base_url: str | None, client_args: Mapping[str, Any] | None) -> None:
    """Raise ``OptionError`` if options that are stored in the pipeline contain secrets."""
    arguments = dict(client_args or {})
    for url in (base_url, arguments.get("base_url")):
        if url is not None:
            normalize_url(url)
    key_hint = f"Use api_key instead, or the environment variable {_KEY_VARIABLE}."
    headers, query = (arguments.get(name) or {} for name in ("default_headers", "default_query"))
    check_mapping("client_args['default_headers']", headers)
    check_mapping("client_args['default_query']", query)
    secrets = [
        *(name for name in arguments if name in _SECRET_ARGUMENTS),
        *(name for name in query if SECRET_NAME.search(name)),
        *(name for name, value in {**query, **arguments}.items() if is_secret_value(value)),
    ]
    if secrets:
        raise OptionError(
            f"client_args has {secrets[0]!r}, which would be stored in the pipeline. {key_hint}"
        )
    check_headers(headers, "client_args['default_headers']", key_hint)


def check_organization(name: str, value: str | None) -> None:
    """Raise ``OptionError`` if the ID of an organization or a project can't be sent in a header."""
    if value is not None:
        check_text(name, value)
        check_headers({f"OpenAI-{name.capitalize()}": value}, name)


def create_openai_client(key: str | None, options: Mapping[str, Any], max_connections: int) -> Any:
    """Create a client of the package ``openai``, or ``OpenAIClient`` if it isn't installed.

    Retries of the package are turned off, because handlers retry.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        openai = importlib.import_module("openai")
    except ImportError:
        return OpenAIClient(key, given, max_connections)
    return openai.OpenAI(**{"max_retries": 0, **given}, **({"api_key": key} if key else {}))


class OpenAIClient:
    """A client with those methods of ``openai.OpenAI`` that send a request and get one response."""

    def __init__(self, key: str | None, options: Mapping[str, Any], max_connections: int) -> None:
        """Create a client with the options of ``openai.OpenAI``.

        Raises:
            OptionError: There is no key, or an option is not supported.
        """
        options = dict(options)
        if key is None:
            raise OptionError(
                f"There is no API key. Set api_key, or the environment variable {_KEY_VARIABLE} on each worker."
            )
        base_url = normalize_url(
            options.pop("base_url", None) or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL
        )
        headers = dict(options.pop("default_headers", {}))
        for name, header, variable in (
            ("organization", "OpenAI-Organization", "OPENAI_ORG_ID"),
            ("project", "OpenAI-Project", "OPENAI_PROJECT_ID"),
        ):
            if value := options.pop(name, None) or os.environ.get(variable):
                headers[header] = value
        check_headers(headers)
        timeout = options.pop("timeout", _TIMEOUT_SECS)
        options.pop("max_retries", None)
        if options:
            raise OptionError(
                f"client_args has {next(iter(options))!r}, which needs the package openai. Run: pip install openai"
            )
        self.api_key = key
        self._http = HttpClient(
            base_url,
            api_key=key,
            api_key_env=_KEY_VARIABLE,
            headers=headers,
            timeout=timeout,
            max_connections=max_connections,
            bypass_proxy=is_local(base_url),
        )
        self.chat = SimpleNamespace(completions=_Resource(self._http, "/chat/completions"))
        self.completions = _Resource(self._http, "/completions")
        self.embeddings = _Resource(self._http, "/embeddings")
        self.responses = _Resource(self._http, "/responses")


class _Resource:
    def __init__(self, http: HttpClient, path: str) -> None:
        self._http = http
        self._path = path

    def create(self, *, extra_body: Mapping[str, Any] | None = None, **fields: Any) -> Response:
        """Send a request with the given fields, and return the response.

        Raises:
            OptionError: The request would be a stream.
            EndpointError: The server is unreachable, or its response is an error or invalid.
        """
        if fields.get("stream"):
            raise OptionError("Streaming needs the package openai. Run: pip install openai")
        body = {**fields, **(extra_body or {})}
        response: Response = self._http.post(self._path, body, _to_response)
        return response


class Response(SimpleNamespace):
    """A response, or an object in it, whose fields are attributes. Optional fields of the API are None."""

    def __getattr__(self, name: str) -> Any:
        if name in _OPTIONAL_FIELDS:
            return None
        raise AttributeError(
            f"The response has no field {name!r}. Its fields are {', '.join(vars(self))}."
        )

    def model_dump(self) -> dict[str, Any]:
        """Return the response as a dictionary."""
        return {name: _to_plain(value) for name, value in vars(self).items()}


def _to_response(value: Any) -> Any:
    check_depth(value)
    if not isinstance(value, dict):
        raise UnusableAnswerError(f"The response is a {type(value).__name__}, not an object.")
    if value.get("error"):
        raise UnusableAnswerError(f"The response has an error: {shorten(str(value['error']))}")
    return _from_plain(value)


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return Response(**{name: _from_plain(item) for name, item in value.items()})
    if isinstance(value, list):
        return [_from_plain(item) for item in value]
    return value


def _to_plain(value: Any) -> Any:
    if isinstance(value, Response):
        return value.model_dump()
    return [_to_plain(item) for item in value] if isinstance(value, list) else value


def complete_chats(
    model_name: str,
    conversations: Sequence[list[Any]],
    client: Any,
    inference_args: Mapping[str, Any],
) -> list[Any]:
    """Send conversations to the chat completions API, concurrently, and return the responses in order."""
    fields = dict(inference_args)
    system = fields.pop("system", None)
    first = [] if system is None else [{"role": "system", "content": system}]

    def complete(messages: list[Any]) -> Any:
        response = client.chat.completions.create(
            model=model_name, messages=[*first, *messages], **fields
        )
        if not getattr(response, "choices", None):
            raise _no_results_error("choices", response)
        return response

    if len(conversations) <= 1:
        return [complete(messages) for messages in conversations]
    with ThreadPoolExecutor(min(len(conversations), _MAX_THREADS)) as threads:
        futures = [threads.submit(complete, messages) for messages in conversations]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def create_embeddings(
    model_name: str, texts: list[str], client: Any, inference_args: Mapping[str, Any]
) -> list[Any]:
    """Send texts to the embeddings API, and return the embeddings in order."""
    response = client.embeddings.create(model=model_name, input=texts, **inference_args)
    data = list(getattr(response, "data", None) or ())
    if not data:
        raise _no_results_error("data", response)
    if len(data) != len(texts):
        raise ResultMismatchError(f"The server returned {len(data)} embeddings, not {len(texts)}.")
    indices = [item.index for item in data]
    if set(indices) == set(range(len(data))):
        return sorted(data, key=lambda item: item.index)
    if len(set(indices)) > 1:
        raise UnusableAnswerError(f"The embeddings have indices {shorten(str(indices))}.")
    return data  # the server doesn't number them


def _no_results_error(name: str, response: Any) -> EndpointError:
    """Return the error for a response of status 200 without results, which may describe an error."""
    dump = getattr(response, "model_dump", None)
    found = find_error(dump()) if callable(dump) else None
    if found is None or found.status is None or found.is_quota:
        message = "" if found is None else f": {shorten(found.message)}"
        return UnusableAnswerError(f"The response has no {name}{message}.")
    error = EndpointError(
        f"The server returned 200 with an error that corresponds to status {found.status}: "
        f"{shorten(found.message)}"
    )
    error.status_code = found.status
    error.retry_after = found.retry_after
    return error


def redact_key(error: Exception, client: Any) -> Exception:
    """Return an error whose message does not contain the client's key: the same one, or an ``EndpointError``."""
    key = getattr(client, "api_key", None)
    try:
        text = f"{error} {error!r} {error.args!r}"
    except Exception:
        return error
    if not (isinstance(key, str) and key) or key not in text:
        return error
    message = shorten(f"{type(error).__name__}: {error}".replace(key, "[the key]"), 1_000)
    redacted = EndpointError(message)
    redacted.status_code = getattr(error, "status_code", None)
    return redacted
