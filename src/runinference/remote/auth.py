"""Credentials of endpoints that expire, or that sign each request."""

from __future__ import annotations

import importlib
import inspect
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Protocol

from runinference.checks import check_text
from runinference.errors import OptionError
from runinference.extras import need
from runinference.handlers.event_loop import resolve
from runinference.remote.headers import check_key, check_sent_headers
from runinference.remote.process_secret import ProcessSecret

_REFRESH_SECS = 60  # before credentials expire, at most
_REFRESH_SHARE = 0.1  # of their lifetime
_FORMS = (
    "a key or token as text, a dictionary of headers, an httpx.Auth, a pair of one of these and the number of "
    "seconds that it is valid, or an object with token and expires_on"
)

AuthFlow = Generator[Any, Any, Any]


class Auth(Protocol):
    """An ``httpx.Auth``, which adds credentials to requests."""

    def sync_auth_flow(self, request: Any) -> AuthFlow:
        """Yield requests, and get the response to each. The last response is the result."""


def check_auth(auth: Any) -> Any:
    """Return ``auth`` in the form that a handler stores: without secrets.

    Raises:
        OptionError: It is neither an ``httpx.Auth`` nor a function without parameters.
    """
    if auth is None:
        return None
    if isinstance(auth, need("httpx", extra="remote").Auth):
        return ProcessSecret(auth)
    if not callable(auth) or isinstance(auth, type):
        raise OptionError(
            "auth must be an httpx.Auth or a function that returns the credentials, but is of type "
            f"{type(auth).__name__}. For a key in an environment variable, set api_key_env."
        )
    try:
        inspect.signature(auth).bind()
    except TypeError:
        raise OptionError(
            "The function auth is called without arguments, but has parameters. To sign requests, return an "
            "httpx.Auth from it."
        ) from None
    except ValueError:  # a function written in C
        pass
    return auth


def create_auth(stored: Any) -> Auth | None:
    """Create the object that adds credentials to a client's requests, from the value that ``check_auth`` returned.

    Raises:
        OptionError: An ``httpx.Auth`` was given in another process.
    """
    if not isinstance(stored, ProcessSecret):
        return None if stored is None else ProvidedAuth(stored)
    if stored.value is None:
        raise OptionError(
            "The httpx.Auth was given to the handler in another process, and credentials are not stored in "
            "pipelines. To fix this, let auth be a function that returns the httpx.Auth."
        )
    auth: Auth = stored.value
    return auth


class ProvidedAuth:
    """Credentials from a function, which is called again when they expire or the server rejects them.

    All threads share the credentials. The function is called by one thread at a time.
    """

    def __init__(self, provide: Callable[[], Any]) -> None:
        self._provide = provide
        self._lock = threading.Lock()
        self._current: _Credentials | None = None

    def sync_auth_flow(self, request: Any) -> AuthFlow:
        url, headers = request.url, request.headers.copy()
        credentials = self._get(rejected=None)
        response = yield from _send_with(credentials, request)
        if response is not None and response.status_code == 401:
            renewed = self._get(rejected=credentials)
            if renewed.headers != credentials.headers or renewed.auth is not credentials.auth:
                request.url, request.headers = url, headers
                yield from _send_with(renewed, request)

    def _get(self, rejected: _Credentials | None) -> _Credentials:
        """Return the credentials, and request new ones if the server rejected the current ones."""
        with self._lock:
            current = self._current
            if current is None or current is rejected or time.monotonic() >= current.refresh_at:
                current = self._current = _read_credentials(resolve(self._provide()))
            return current


class AuthError(Exception):
    """The credentials of a request can't be obtained."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason


class AuthRequests:
    """The requests of an authentication, one after the other."""

    def __init__(self, auth: Auth, request: Any) -> None:
        self._flow = auth.sync_auth_flow(request)
        self.request = self._call(lambda: next(self._flow))

    def proceed(self, response: Any) -> bool:
        """Pass the response to ``request`` on. Return False if it is the last one."""
        try:
            self.request = self._call(lambda: self._flow.send(response))
        except StopIteration:
            return False
        return True

    def close(self) -> None:
        self._flow.close()

    @staticmethod
    def _call(step: Callable[[], Any]) -> Any:
        try:
            request = step()
            check_sent_headers(request.headers)
        except StopIteration:
            raise
        except Exception as error:
            raise AuthError(error) from None
        return request


@dataclass(frozen=True)
class _Credentials:
    headers: Mapping[str, str] = field(repr=False)
    refresh_at: float = math.inf  # of the monotonic clock
    auth: Auth | None = field(default=None, repr=False)


def _send_with(credentials: _Credentials, request: Any) -> AuthFlow:
    """Yield requests with credentials, and return the response to the last one."""
    request.headers.update(credentials.headers)
    if credentials.auth is None:
        return (yield request)
    flow, response = credentials.auth.sync_auth_flow(request), None
    try:
        while True:
            response = yield flow.send(response)
    except StopIteration:
        return response
    finally:
        flow.close()


def _read_credentials(value: Any) -> _Credentials:
    """Convert the value that a function returned. Errors don't contain it."""
    lifetime = math.inf
    if hasattr(value, "token") and hasattr(
        value, "expires_on"
    ):  # such as AccessToken of azure.core
        value, lifetime = value.token, _seconds_until(value.expires_on)
    elif isinstance(value, tuple) and len(value) == 2:
        value, lifetime = value[0], _to_seconds(value[1])
    refresh_at = time.monotonic() + lifetime - min(_REFRESH_SECS, _REFRESH_SHARE * lifetime)
    if isinstance(value, need("httpx", extra="remote").Auth):
        return _Credentials({}, refresh_at, value)
    return _Credentials(_to_headers(value), refresh_at)


def _to_headers(value: Any) -> dict[str, str]:
    if isinstance(value, str) and value.strip():
        return {
            "Authorization": f"Bearer {check_key(value, 'The key that the function auth returned')}"
        }
    texts = [*value.items()] if isinstance(value, Mapping) else []
    if texts and all(isinstance(name, str) and isinstance(text, str) for name, text in texts):
        return {
            name: check_key(text, f"The header {name!r} from the function auth")
            for name, text in texts
        }
    kind = "an empty string" if isinstance(value, str) else f"a {type(value).__name__}"
    raise OptionError(f"The function auth returned {kind}. It must return {_FORMS}.")


def _to_seconds(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        return max(0.0, float(value))
    raise OptionError(
        "The function auth returned a pair whose second value is not a number of seconds, but a "
        f"{type(value).__name__}. It must return {_FORMS}."
    )


def _seconds_until(moment: Any) -> float:
    """Return the seconds until a ``datetime``, or until a number of seconds since 1970."""
    if isinstance(moment, datetime):
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
        moment = aware.timestamp()
    return math.inf if moment is None else max(0.0, _to_seconds(moment) - time.time())


@dataclass(frozen=True)
class AwsSigV4:
    """Signs requests for AWS with Signature Version 4. Pass it as ``auth`` of a handler.

    botocore computes the signature of each request, and renews credentials that expire. Each retry is signed
    again. Call the object to get an ``httpx.Auth`` for other clients.

    >>> from runinference.http_inference import AwsSigV4
    >>> AwsSigV4("sagemaker", "eu-central-1")
    AwsSigV4(service='sagemaker', region='eu-central-1')

    Args:
        service: Name of the service in signatures, such as ``"sagemaker"`` or ``"bedrock"``.
        region: Region of the endpoint, such as ``"us-east-1"``.
        credentials: A function that returns botocore credentials and is called once by each client on the workers,
            or the credentials themselves, which work only in this process. To renew temporary credentials, return
            ``RefreshableCredentials``. By default, the workers look for credentials where other AWS clients do: in
            environment variables, configuration files, and the role of the machine.

    Raises:
        OptionError: A value is empty.
    """

    service: str
    region: str
    credentials: Any

    def __init__(self, service: str, region: str, credentials: Any = None) -> None:
        check_text("service", service)
        check_text("region", region)
        object.__setattr__(self, "service", service)
        object.__setattr__(self, "region", region)
        is_secret = credentials is not None and not callable(credentials)
        stored = ProcessSecret(credentials) if is_secret else credentials
        object.__setattr__(self, "credentials", stored)

    def __repr__(self) -> str:
        return f"AwsSigV4(service={self.service!r}, region={self.region!r})"

    def __call__(self) -> Any:
        """Return an ``httpx.Auth``.

        Raises:
            OptionError: No credentials were found on this machine.
            ImportError: botocore or httpx isn't installed.
        """
        credentials = self._find_credentials()
        if credentials is None:
            raise OptionError(
                "AwsSigV4 found no AWS credentials on this machine. To fix this, set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY on the workers, give their machines a role, or let credentials be a "
                "function that returns them."
            )
        return _create_signer(credentials, self.service, self.region)

    def _find_credentials(self) -> Any:
        if isinstance(self.credentials, ProcessSecret):
            return self.credentials.value
        if self.credentials is not None:
            return self.credentials()
        return _import_botocore("session").get_session().get_credentials()


def _import_botocore(name: str) -> Any:
    try:
        return importlib.import_module(f"botocore.{name}")
    except ImportError as error:
        raise ImportError(
            f"botocore is required to sign requests for AWS but cannot be imported ({error}). To fix this, run: "
            "pip install botocore. On a distributed runner, the workers need it too.",
            name=error.name,
        ) from error


# Headers that proxies may change can't be signed.
_SIGNED_HEADERS = ("content-type", "host", "x-amz")


def _create_signer(credentials: Any, service: str, region: str) -> Any:
    httpx = need("httpx", extra="remote")
    signer = _import_botocore("auth").SigV4Auth
    aws_request = _import_botocore("awsrequest").AWSRequest

    class _Signer(httpx.Auth):  # type: ignore[misc, name-defined]
        requires_request_body = True

        def auth_flow(self, request: Any) -> AuthFlow:
            headers = {
                name: value
                for name, value in request.headers.items()
                if name.startswith(_SIGNED_HEADERS)
            }
            signed = aws_request(
                method=request.method, url=str(request.url), data=request.content, headers=headers
            )
            # Credentials that expire are renewed here.
            freeze = getattr(credentials, "get_frozen_credentials", lambda: credentials)
            signer(freeze(), service, region).add_auth(signed)
            request.headers.update(dict(signed.headers.items()))
            yield request

    return _Signer()
