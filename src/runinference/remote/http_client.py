"""A JSON client for HTTP endpoints. Its errors include the server's response, and never contain the key."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from runinference.errors import (
    ElementError,
    EndpointDisconnectedError,
    EndpointError,
    EndpointRefusedError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    ResultMismatchError,
    UnusableAnswerError,
)
from runinference.extras import need

_MAX_ERROR_BYTES = 65_536  # read from an error response
_MAX_QUOTED = 300  # quoted from it in a message
_CONNECT_TIMEOUT_SECS = 10.0
_Headers = Mapping[str, str]
_TAGS = re.compile(r"<(style|script)\b.*?</\1>|<[a-z/!][^>]*>", re.DOTALL | re.IGNORECASE)


class HttpClient:
    """A client that sends JSON requests. Several threads may share it."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        api_key_env: str | None,
        headers: Mapping[str, str],
        timeout: float,
        max_connections: int,
        bypass_proxy: bool,
    ) -> None:
        """Create a client. Connections are opened on demand; ``api_key_env`` is only for error messages."""
        self._httpx: Any = need("httpx", extra="remote")
        self._base_url = base_url
        self._timeout = timeout
        self._api_key = api_key
        self._api_key_env = api_key_env
        self._urls: dict[str, Any] = {}  # parsed URLs by path
        self._http = self._httpx.Client(
            headers={
                **headers,
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
            },
            timeout=self._httpx.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT_SECS)),
            limits=self._httpx.Limits(
                max_connections=max_connections, max_keepalive_connections=max_connections
            ),
            mounts=dict.fromkeys(("http://", "https://", "all://")) if bypass_proxy else {},
            follow_redirects=False,
        )

    def post(self, path: str, body: Any, parse: Callable[[Any], Any]) -> Any:
        """Send a request, and return the result of ``parse`` for the JSON response."""
        try:
            content = json.dumps(body, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise ElementError(
                f"A request can't be serialized to JSON ({error}). Convert elements with with_preprocess_fn, and "
                "use only numbers, strings, lists and dictionaries in inference_args."
            ) from error
        response = self._request_json("POST", path, content)
        try:
            return parse(response)
        except (UnusableAnswerError, ResultMismatchError) as error:
            url, message = self._base_url + path, self._redact_key(str(error))
            invalid = type(error)(f"{url} returned an unexpected response. {message}")
        raise invalid

    def get(self, path: str) -> Any:
        """Return the JSON response for a path."""
        return self._request_json("GET", path, None)

    def _request_json(self, method: str, path: str, content: bytes | None) -> Any:
        answer, error = self._try_request_json(method, path, content)
        if error is not None:
            # Raised here, where neither a local variable nor the error's context contains the key.
            raise error
        return answer

    def _try_request_json(
        self, method: str, path: str, content: bytes | None
    ) -> tuple[Any, EndpointError | None]:
        url = self._base_url + path
        if path not in self._urls:
            self._urls[path] = self._httpx.URL(url)
        try:
            status, headers, body = self._exchange(method, self._urls[path], content)
        except self._httpx.HTTPError as error:
            return None, self._transport_error(url, error)
        if not 200 <= status < 300:
            return None, self._status_error(url, status, headers, body)
        try:
            return json.loads(body), None
        except ValueError:
            return None, self._json_error(url, status, headers, body)

    def _exchange(
        self, method: str, url: Any, content: bytes | None
    ) -> tuple[int, _Headers, bytes]:
        deadline = time.monotonic() + self._timeout
        with self._http.stream(method, url, content=content) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > deadline:
                    raise self._httpx.ReadTimeout("the response is too slow")
                if not response.is_success and len(body) > _MAX_ERROR_BYTES:
                    break
            return response.status_code, response.headers, bytes(body)

    def _transport_error(self, url: str, error: Exception) -> EndpointError:
        httpx, message = self._httpx, self._quote(str(error))
        if isinstance(error, httpx.ConnectError) and "SSL" in message:
            return EndpointUnreachableError(
                f"Can't open an encrypted connection to {url} ({message}). If the server doesn't use TLS, start "
                "base_url with http. If its certificate is from a private authority, set SSL_CERT_FILE."
            )
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
            return EndpointUnreachableError(
                f"No server answers at {url} ({message or 'the connection timed out'}). Start the server, or "
                "correct base_url. Workers on other machines must be able to reach it."
            )
        if isinstance(error, httpx.TimeoutException):
            return EndpointTimeoutError(
                f"{url} did not answer within {self._timeout:g} seconds. To fix this, increase timeout, send less "
                "in a request, or lower max_concurrent_requests."
            )
        if isinstance(error, httpx.TransportError):
            return EndpointDisconnectedError(
                f"{url} closed the connection before the response was complete "
                f"({message or type(error).__name__}). If this keeps happening, check the server's log."
            )
        return EndpointError(f"The response of {url} can't be read ({message}).")

    def _status_error(self, url: str, status: int, headers: _Headers, body: bytes) -> EndpointError:
        kind, hint = self._explain_status(status)
        redirected = 300 <= status < 400
        text = headers.get("location", "no location") if redirected else _extract_message(body)
        message = self._quote(text) or "no message"
        error = kind(f"{url} returned {status}: {message}{'.' * bool(hint)} {hint}".strip())
        error.status_code, error.retry_after = status, headers.get("retry-after")
        return error

    def _explain_status(self, status: int) -> tuple[type[EndpointError], str]:
        """Return the error class for a status, and a hint or an empty string."""
        if 300 <= status < 400:
            return EndpointRefusedError, (
                "Redirects are not followed, because they could send the key to another server. If you trust that "
                "URL, set base_url to it."
            )
        if status >= 500:
            return EndpointError, "Check the server's log."
        key_hint = (
            f"Check the key in the environment variable {self._api_key_env} (api_key_env)."
            if self._api_key_env
            else "Set api_key_env to the name of the environment variable that holds the key."
        )
        url_hint = f"Check base_url ({self._base_url}) and the name of the model."
        wait_hint = "Lower max_concurrent_requests, or wait longer (num_retries, backoff)."
        return {
            401: (EndpointRefusedError, key_hint),
            403: (EndpointError, key_hint),
            404: (EndpointRefusedError, url_hint),
            405: (EndpointRefusedError, url_hint),
            413: (EndpointError, "Lower max_request_size."),
            429: (EndpointError, wait_hint),
        }.get(status, (EndpointError, ""))

    def _json_error(self, url: str, status: int, headers: _Headers, body: bytes) -> EndpointError:
        start = self._quote(body[:_MAX_ERROR_BYTES].decode(errors="replace")) or "an empty body"
        if "html" in headers.get("content-type", ""):
            return UnusableAnswerError(
                f"{url} returned an HTML page instead of JSON: {start}. Correct base_url."
            )
        return EndpointError(f"{url} returned {status} with invalid or incomplete JSON: {start}.")

    def _quote(self, text: str) -> str:
        """Return the start of a text on one line, without HTML tags and without the key."""
        text = " ".join(_TAGS.sub(" ", self._redact_key(text)).split()).rstrip(" .")
        return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + " ..."

    def _redact_key(self, text: str) -> str:
        return text.replace(self._api_key, "[the key]") if self._api_key else text


def _extract_message(body: bytes) -> str:
    """Return the message in an error response of a common format, or else the whole body."""
    text = body.decode(errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        return text
    while isinstance(value, dict):
        name = next((n for n in ("error", "message", "detail", "msg") if value.get(n)), None)
        if name is None:
            break
        value = value[name]
    return value if isinstance(value, str) else json.dumps(value)
