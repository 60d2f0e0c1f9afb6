"""The URL and key of an endpoint, and the base class of handlers that send JSON to one."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import Self, Unpack

from runinference.checks import (
    SECRET_VALUE,
    check_bool,
    check_env_vars,
    check_int,
    check_mapping,
    check_seconds,
    is_secret_value,
)
from runinference.errors import OptionError
from runinference.extras import need
from runinference.handlers.options import accepts
from runinference.remote.auth import check_auth, create_auth
from runinference.remote.handler import RemoteModelHandler, RemoteOptions
from runinference.remote.headers import SECRET_NAME, check_headers, check_key
from runinference.remote.http_client import MAX_RESPONSE_BYTES, HttpClient
from runinference.remote.local_server import LocalServer, LocalServerClient
from runinference.results import PredictionResult

_INVALID_URL = "base_url must be a URL such as http://localhost:8000."
#: The default of ``api_key_env`` of handlers for the OpenAI API. It isn't read if there are other credentials.
DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
_SECRET_PARAMETERS = frozenset(
    ["code", "sig"]
)  # of Azure Functions, and of shared access signatures
_ENVIRONMENT_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True)
class Endpoint:
    """The settings of an endpoint, see ``EndpointModelHandler``. They never contain the key."""

    base_url: str | LocalServer
    api_key_env: str | None = None
    timeout: float = 120
    headers: Mapping[str, str] = field(default_factory=dict)
    key_over_http: bool = False
    max_connections: int = 16
    max_response_bytes: int = MAX_RESPONSE_BYTES
    query: Mapping[str, str] = field(default_factory=dict)
    auth: Any = None  # what check_auth returns

    def __post_init__(self) -> None:
        if not isinstance(self.base_url, LocalServer):
            object.__setattr__(self, "base_url", normalize_url(self.base_url))
        check_seconds("timeout", self.timeout)
        check_bool("key_over_http", self.key_over_http)
        check_int("max_response_bytes", self.max_response_bytes)
        check_headers(self.headers)
        _check_variable(self.api_key_env)
        if self.auth is not None and self.api_key_env is not None:
            raise OptionError("api_key_env and auth are both set. To fix this, remove one of them.")
        if not (self.is_local or self.key_over_http):
            self._check_encryption(str(self.base_url))

    def _check_encryption(self, url: str) -> None:
        """Raise ``OptionError`` if requests contain a key that isn't encrypted."""
        if urlsplit(url).scheme == "https":
            return
        if self.api_key_env:
            raise OptionError(
                f"base_url is {url}: over http, others on the network could read the key of {self.api_key_env} "
                "(api_key_env). Use https. Or set api_key_env=None if the server needs no key, or "
                "key_over_http=True if you trust the network."
            )
        if self.auth is not None:
            raise OptionError(
                f"base_url is {url}: over http, others on the network could read the credentials of auth. Use "
                "https, or set key_over_http=True if you trust the network."
            )

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is on this machine."""
        return isinstance(self.base_url, LocalServer) or is_local(self.base_url)

    def create_client(self) -> HttpClient | LocalServerClient:
        """Create a client with the key of this machine, or raise ``OptionError`` if it has none."""
        if isinstance(self.base_url, LocalServer):
            return LocalServerClient(self.base_url, self._open_client)
        return self._open_client(self.base_url)

    def _open_client(self, url: str) -> HttpClient:
        return HttpClient(
            url,
            api_key=_read_key(self.api_key_env),
            api_key_env=self.api_key_env,
            headers=self.headers,
            timeout=self.timeout,
            max_connections=self.max_connections,
            bypass_proxy=self.is_local,
            max_response_bytes=self.max_response_bytes,
            query=self.query,
            auth=create_auth(self.auth),
        )


class EndpointOptions(RemoteOptions, total=False):
    """Keywords of every handler that sends JSON to an endpoint; see ``EndpointModelHandler``."""

    timeout: float
    headers: Mapping[str, str] | None
    key_over_http: bool
    max_response_bytes: int
    query: Mapping[str, Any] | None
    auth: Any


class EndpointModelHandler(RemoteModelHandler[Any, PredictionResult, Any]):
    """The base class of handlers that send JSON to an endpoint."""

    @accepts(RemoteModelHandler.__init__)
    def __init__(
        self,
        base_url: str | LocalServer,
        api_key_env: str | None = None,
        *,
        timeout: float = 120,
        headers: Mapping[str, str] | None = None,
        key_over_http: bool = False,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        query: Mapping[str, Any] | None = None,
        auth: Any = None,
        max_request_size: int | None = None,
        **options: Unpack[RemoteOptions],
    ) -> None:
        """Configure the endpoint. This sends nothing and reads no key.

        Args:
            base_url: URL of the server. The paths of the protocol are appended to it. Or a ``LocalServer``, which
                is started on the worker.
            api_key_env: Name of the environment variable that contains the API key on the workers. The key is sent
                as a bearer token. None if the server needs no key.
            timeout: Maximum time in seconds of a request, from connecting to the last byte of the response.
            headers: Additional headers for each request. They must not contain secrets.
            key_over_http: Whether the key may be sent unencrypted to another machine.
            max_response_bytes: Maximum size of a response after decompression, in bytes. By default 64 MiB.
            query: Query parameters of each request, such as ``{"api-version": "2024-10-21"}``. They must not
                contain secrets.
            auth: Credentials, instead of ``api_key_env``. A function without parameters is called on the workers,
                and called again when the credentials expire or the server responds with status 401. It returns a
                key or token as text, which is sent as a bearer token; a dictionary of headers; an ``httpx.Auth``;
                a pair of one of these and the number of seconds that it is valid; or an object with ``token`` and
                ``expires_on``, such as the ``AccessToken`` of ``azure.core``. You can also pass an ``httpx.Auth``
                instead of a function. It isn't stored in the pipeline, and works only in this process.
            max_request_size: Maximum number of examples in a request.
            **options: The options of every remote handler, see ``RemoteModelHandler``.

        Raises:
            OptionError: A value is invalid, a header contains characters that HTTP can't represent, the URL or a
                header contains a secret, or the key would be sent unencrypted.
            ImportError: httpx or tenacity isn't installed.
        """
        need("httpx", extra="remote")
        if headers is not None:
            check_mapping("headers", headers)
        has_default_key = api_key_env == DEFAULT_KEY_VARIABLE
        if has_default_key and (auth is not None or isinstance(base_url, LocalServer)):
            api_key_env = None
        check_env_vars(options.get("env_vars") or {}, secret=api_key_env)
        super().__init__(max_request_size=max_request_size, **options)
        self._endpoint = Endpoint(
            base_url,
            api_key_env,
            timeout=timeout,
            headers=dict(headers or {}),
            key_over_http=key_over_http,
            max_connections=self.max_concurrent_requests,
            max_response_bytes=max_response_bytes,
            query=check_query(query or {}),
            auth=check_auth(auth),
        )

    def create_client(self) -> Any:
        return self._endpoint.create_client()

    def get_result_options(self) -> dict[str, Any]:
        endpoint = self._endpoint
        return {
            **super().get_result_options(),
            "_endpoint": (
                url.key if isinstance(url := endpoint.base_url, LocalServer) else url,
                sorted(endpoint.headers.items()),
                sorted(endpoint.query.items()),
            ),
        }

    def with_option(self, name: str, value: Any) -> Self:
        changed = super().with_option(name, value)
        n_connections = changed.max_concurrent_requests
        changed._endpoint = replace(self._endpoint, max_connections=n_connections)
        return changed

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Check that arguments can be fields of a request.

        Raises:
            OptionError: An argument can't be written as JSON.
        """
        check_json_fields("inference_args", inference_args or {})


def check_json_fields(option: str, fields: Mapping[str, Any]) -> None:
    """Raise ``OptionError`` if fields of a request can't be written as JSON, which has no NaN or infinity."""
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(
            f"{option} cannot be written as JSON ({error}). Use only finite numbers, strings, lists and "
            "dictionaries."
        ) from error


def check_query(query: Any) -> dict[str, str]:
    """Check query parameters, and return them as text.

    Raises:
        OptionError: A value isn't text or a number, or a parameter may be a secret.
    """
    check_mapping("query", query)
    for name, value in query.items():
        is_secret = SECRET_NAME.search(name) or name.lower() in _SECRET_PARAMETERS
        if is_secret or is_secret_value(value):
            raise OptionError(
                f"query has {name!r}, whose value would be stored in the pipeline. To fix this, let auth be a "
                "function that returns an httpx.Auth, which adds the parameter to the URL of each request."
            )
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise OptionError(
                f"The value of {name!r} in query must be a string or a number, but is of type "
                f"{type(value).__name__}."
            )
    return {name: str(value) for name, value in query.items()}


def _check_variable(variable: Any) -> None:
    if variable is None:
        return
    is_name = isinstance(variable, str) and _ENVIRONMENT_VARIABLE.fullmatch(variable)
    if not is_name or SECRET_VALUE.match(variable):
        raise OptionError(
            "api_key_env must be the name of an environment variable, such as 'OPENAI_API_KEY', not the key "
            "itself, which would be stored in the pipeline."
        )


def is_local(url: str) -> bool:
    """Return whether a URL is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def normalize_url(url: Any) -> str:
    """Check a URL, and remove its trailing slashes."""
    try:
        parts = urlsplit(str(url))
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        valid = valid and " " not in str(url) and str(url).isprintable()
    except ValueError:  # invalid port or brackets
        raise OptionError(_INVALID_URL) from None
    if any(mark in str(url) for mark in "@?#"):
        raise OptionError(
            "base_url has a user name, a password, a query or a fragment, which would be stored in the pipeline. "
            "Remove it. Put a key into an environment variable, and set api_key_env to its name. Pass other query "
            "parameters as query."
        )
    if not valid:
        raise OptionError(f"{_INVALID_URL} It is {url!r}.")
    return str(url).rstrip("/")


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    name = f"The environment variable {variable} (api_key_env)"
    key = check_key(os.environ.get(variable, ""), name)
    if not key:
        raise OptionError(
            f"{name} is not set here. Set it to the server's key on each worker. If the server needs no key, set "
            "api_key_env=None."
        )
    return key
