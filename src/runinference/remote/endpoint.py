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
)
from runinference.errors import OptionError
from runinference.extras import need
from runinference.handlers.options import accepts
from runinference.remote.handler import RemoteModelHandler, RemoteOptions
from runinference.remote.http_client import MAX_RESPONSE_BYTES, HttpClient
from runinference.results import PredictionResult

_INVALID_URL = "base_url must be a URL such as http://localhost:8000."
SECRET_NAME = re.compile("auth|key|token|secret|cookie|passw|credential|signature", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
# What the client sets for each request, or can't support.
_RESERVED_HEADERS = frozenset(
    [
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
_ENVIRONMENT_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True)
class Endpoint:
    """The settings of an endpoint, see ``EndpointModelHandler``. They never contain the key."""

    base_url: str
    api_key_env: str | None = None
    timeout: float = 120
    headers: Mapping[str, str] = field(default_factory=dict)
    key_over_http: bool = False
    max_connections: int = 16
    max_response_bytes: int = MAX_RESPONSE_BYTES

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", normalize_url(self.base_url))
        check_seconds("timeout", self.timeout)
        check_bool("key_over_http", self.key_over_http)
        check_int("max_response_bytes", self.max_response_bytes)
        check_headers(self.headers)
        _check_variable(self.api_key_env)
        encrypted = urlsplit(self.base_url).scheme == "https"
        if self.api_key_env and not (encrypted or self.is_local or self.key_over_http):
            raise OptionError(
                f"base_url is {self.base_url}: over http, others on the network could read the key of "
                f"{self.api_key_env} (api_key_env). Use https. Or set api_key_env=None if the server needs no "
                "key, or key_over_http=True if you trust the network."
            )

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is on this machine."""
        return is_local(self.base_url)

    def create_client(self) -> HttpClient:
        """Create a client with the key in this machine's environment, or raise ``OptionError`` if it has none."""
        return HttpClient(
            self.base_url,
            api_key=_read_key(self.api_key_env),
            api_key_env=self.api_key_env,
            headers=self.headers,
            timeout=self.timeout,
            max_connections=self.max_connections,
            bypass_proxy=self.is_local,
            max_response_bytes=self.max_response_bytes,
        )


class EndpointOptions(RemoteOptions, total=False):
    """Keywords of every handler that sends JSON to an endpoint; see ``EndpointModelHandler``."""

    timeout: float
    headers: Mapping[str, str] | None
    key_over_http: bool
    max_response_bytes: int


class EndpointModelHandler(RemoteModelHandler[Any, PredictionResult, Any]):
    """The base class of handlers that send JSON to an endpoint."""

    @accepts(RemoteModelHandler.__init__)
    def __init__(
        self,
        base_url: str,
        api_key_env: str | None = None,
        *,
        timeout: float = 120,
        headers: Mapping[str, str] | None = None,
        key_over_http: bool = False,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        max_request_size: int | None = None,
        **options: Unpack[RemoteOptions],
    ) -> None:
        """Configure the endpoint. This sends nothing and reads no key.

        Args:
            base_url: URL of the server. The paths of the protocol are appended to it.
            api_key_env: Name of the environment variable that contains the API key on the workers. The key is sent
                as a bearer token. None if the server needs no key.
            timeout: Maximum time in seconds of a request, from connecting to the last byte of the response.
            headers: Additional headers for each request. They must not contain secrets.
            key_over_http: Whether the key may be sent unencrypted to another machine.
            max_response_bytes: Maximum size of a response after decompression, in bytes. By default 64 MiB.
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
        )

    def create_client(self) -> Any:
        return self._endpoint.create_client()

    def get_result_options(self) -> dict[str, Any]:
        endpoint = self._endpoint
        return {
            **super().get_result_options(),
            "_endpoint": (endpoint.base_url, sorted(endpoint.headers.items())),
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


def check_headers(
    headers: Mapping[Any, Any],
    option: str = "headers",
    key_hint: str = "Put the key into an environment variable of the workers, and set api_key_env to its name.",
) -> None:
    """Check the additional headers of requests.

    Args:
        headers: The headers.
        option: Name of the option, for error messages.
        key_hint: How to send a key instead.

    Raises:
        OptionError: HTTP can't represent a header, a value may be a secret, or the client sets the header itself.
    """
    seen: set[str] = set()
    for name, value in headers.items():
        if not (isinstance(name, str) and _HEADER_NAME.fullmatch(name)):
            raise OptionError(
                f"{option} has the name {name!r}, which isn't valid in HTTP. Use letters, digits and hyphens."
            )
        if SECRET_NAME.search(name) or (isinstance(value, str) and SECRET_VALUE.match(value)):
            raise OptionError(
                f"{option} has {name!r}, whose value would be stored in the pipeline. {key_hint}"
            )
        if not (isinstance(value, str) and _HEADER_VALUE.fullmatch(value)):
            raise OptionError(
                f"The value of {name!r} in {option} isn't valid in HTTP: it must be a string of Latin-1 "
                "characters without line breaks. Encode other values, for example with urllib.parse.quote."
            )
        if name.lower() in _RESERVED_HEADERS:
            raise OptionError(f"{option} has {name!r}, which the client sets itself. Remove it.")
        if name.lower() in seen:
            raise OptionError(f"{option} has {name!r} twice, in upper and lower case. Remove one.")
        seen.add(name.lower())


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
    if "@" in str(url) or parts.query or parts.fragment:
        raise OptionError(
            "base_url has a user name, a password, a query or a fragment, which would be stored in the pipeline. "
            "Remove it. Put a key into an environment variable, and set api_key_env to its name."
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


def check_key(key: str, name: str) -> str:
    """Return a key without spaces and line breaks around it, or raise ``OptionError`` if HTTP can't represent it.

    HTTP libraries quote the key in their errors about invalid headers.
    """
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise OptionError(
            f"{name} contains a line break or other invalid characters. Set it to a valid key."
        )
    return key
