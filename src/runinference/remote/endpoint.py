"""Where requests to an endpoint go, and with whose key; the handler that sends them there."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import Unpack

from runinference.errors import OptionError
from runinference.extras import need
from runinference.handlers.options import accepts
from runinference.remote.handler import RemoteModelHandler, RemoteOptions
from runinference.remote.http_client import Client
from runinference.results import PredictionResult

_NO_ADDRESS = "base_url must be an address such as http://localhost:8000."


@dataclass(frozen=True)
class Endpoint:
    """Where requests go. It holds the name of the key's environment variable, and never the key.

    >>> Endpoint("http://models.example.com/v1", api_key_env="KEY")
    Traceback (most recent call last):
        ...
    runinference.errors.OptionError: base_url is http://models.example.com/v1: over http anyone on the way could \
read the key of KEY (api_key_env). Use https; or api_key_env=None, if the server asks for no key; or \
key_over_http=True, if you trust the network.

    Attributes:
        base_url: The address that paths are appended to.
        api_key_env: The environment variable that holds the key; None for a server that asks for none.
        timeout: Seconds for a request, from the first byte sent to the last byte read.
        headers: Further headers of each request.
        key_over_http: Whether the key may travel unencrypted to another machine.
        connections: The most connections at a time.

    Raises:
        OptionError: The address is none, or holds a secret; or the key would travel unencrypted.
    """

    base_url: str
    api_key_env: str | None = None
    timeout: float = 120
    headers: Mapping[str, str] = field(default_factory=dict)
    key_over_http: bool = False
    connections: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", _checked_url(self.base_url))
        if self.timeout <= 0:
            raise OptionError(f"timeout must be greater than 0 seconds, and is {self.timeout!r}.")
        if secret := next((name for name in self.headers if _holds_a_secret(name)), None):
            raise OptionError(
                f"headers has {secret!r}, and what it holds would travel with the pipeline. Put the key into an "
                "environment variable of the workers, and name that: api_key_env."
            )
        encrypted = urlsplit(self.base_url).scheme == "https"
        if self.api_key_env and not (encrypted or self.is_local or self.key_over_http):
            raise OptionError(
                f"base_url is {self.base_url}: over http anyone on the way could read the key of "
                f"{self.api_key_env} (api_key_env). Use https; or api_key_env=None, if the server asks for no "
                "key; or key_over_http=True, if you trust the network."
            )

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    def open(self) -> Client:
        """A client with the key of this machine's environment.

        Raises:
            OptionError: The variable is not set, or holds what cannot be a key.
            ImportError: httpx is not installed.
        """
        return Client(
            self.base_url,
            key=_key(self.api_key_env),
            key_name=self.api_key_env,
            headers=self.headers,
            timeout=self.timeout,
            connections=self.connections,
            direct=self.is_local,
        )


class EndpointOptions(RemoteOptions, total=False):
    """Keywords of every handler that speaks JSON to an endpoint; described at ``EndpointModelHandler``."""

    timeout: float
    headers: Mapping[str, str] | None
    key_over_http: bool


class EndpointModelHandler(RemoteModelHandler[Any, PredictionResult, Any]):
    """What handlers that speak JSON to an endpoint have in common: its address, and the key."""

    @accepts(RemoteOptions)
    def __init__(
        self,
        base_url: str,
        api_key_env: str | None = None,
        *,
        timeout: float = 120,
        headers: Mapping[str, str] | None = None,
        key_over_http: bool = False,
        max_request_size: int | None = None,
        **options: Unpack[RemoteOptions],
    ) -> None:
        """Names the endpoint. Nothing is sent yet, and no key is read.

        Args:
            base_url: The address that the protocol's paths are appended to.
            api_key_env: The environment variable of the workers that holds the key, sent as a bearer token; None
                for a server that asks for none.
            timeout: Seconds for a request, from connecting to the last byte of the answer.
            headers: Further headers of each request; none that hold a secret.
            key_over_http: Whether the key may travel unencrypted to another machine.
            max_request_size: The most examples in a request.
            **options: The options of every remote handler, see ``RemoteModelHandler``.

        Raises:
            OptionError: A value is out of range, the address holds a secret, or the key would travel unencrypted.
            ImportError: httpx or tenacity is not installed.
        """
        need("httpx", extra="remote")
        super().__init__(max_request_size=max_request_size, **options)
        self._endpoint = Endpoint(
            base_url,
            api_key_env,
            timeout=timeout,
            headers=dict(headers or {}),
            key_over_http=key_over_http,
            connections=self.max_concurrent_requests,
        )

    def create_client(self) -> Any:
        """A client with the key of this worker's environment.

        Raises:
            OptionError: The variable is not set, or holds what cannot be a key.
        """
        return self._endpoint.open()


def _checked_url(url: Any) -> str:
    """An address without a slash at its end."""
    try:
        parts = urlsplit(str(url))
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port, or of brackets
        raise OptionError(_NO_ADDRESS) from None
    if "@" in parts.netloc:
        raise OptionError(
            "base_url holds a user name or a password, which would travel with the pipeline and show in errors. "
            "Put the key into an environment variable, and name that: api_key_env."
        )
    if parts.query or parts.fragment:
        raise OptionError(
            "base_url has a query (what follows '?') or a fragment: give the address without it. A key belongs "
            "into an environment variable: api_key_env."
        )
    if not right:
        raise OptionError(f"{_NO_ADDRESS} It is {url!r}.")
    return str(url).rstrip("/")


def _holds_a_secret(header: str) -> bool:
    return re.search("auth|key|token|secret|cookie", header, re.IGNORECASE) is not None


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise OptionError(
            f"The environment variable {name} (api_key_env) is not set here. Put the server's key into it, on "
            "each worker; or give api_key_env=None for a server that asks for no key."
        )
    if not (key.isascii() and key.isprintable()):
        raise OptionError(
            f"The environment variable {name} (api_key_env) holds a line break or other characters that no key "
            "has. Set it anew."
        )
    return key
