"""The errors of HTTP requests. They include the server's response, and never contain the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runinference.errors import (
    EndpointDisconnectedError,
    EndpointError,
    EndpointRefusedError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    UnusableAnswerError,
    get_message,
)
from runinference.extras import need
from runinference.remote.error_response import (
    ServerError,
    find_error,
    hide_secrets,
    read_error_body,
    shorten,
)
from runinference.remote.redaction import Redactor
from runinference.remote.response_body import ACCEPTED_ENCODINGS
from runinference.remote.retry import worth_retrying

#: Maximum number of bytes to read from an error response.
MAX_ERROR_BYTES = 65_536

_MAX_MESSAGE = 1_000  # characters about a response that doesn't follow the protocol
_Headers = Mapping[str, str]


class HttpErrors:
    """Creates the errors of a client.

    Args:
        base_url: The URL of the server.
        timeout: The time limit of a request in seconds.
        api_key_env: The name of the environment variable with the key; None if there is none.
        has_auth: Whether ``auth`` provides the credentials.
        redactor: Removes the credentials from messages.
    """

    def __init__(
        self,
        base_url: str,
        timeout: float,
        api_key_env: str | None,
        has_auth: bool,
        redactor: Redactor,
    ) -> None:
        self._base_url = base_url
        self._timeout = timeout
        self._api_key_env = api_key_env
        self._has_auth = has_auth
        self._redactor = redactor

    def auth_error(self, url: str, reason: Exception) -> EndpointError:
        """Return the error for credentials that can't be obtained. It is retried if it may be temporary."""
        is_temporary = worth_retrying(reason) and not isinstance(reason, LookupError)
        kind = EndpointUnreachableError if is_temporary else EndpointRefusedError
        message = self._redactor.quote(f"{type(reason).__name__}: {get_message(reason)}")
        return kind(f"No request was sent to {url}, because auth failed ({message}).")

    def transport_error(self, url: str, error: Exception) -> EndpointError:
        """Return the error for a request that got no complete response."""
        core: Any = need("httpcore", extra="remote")
        message = self._redactor.quote(str(error))
        if isinstance(error, core.ConnectError) and "SSL" in message:
            return EndpointUnreachableError(
                f"Can't open an encrypted connection to {url} ({message}). If the server doesn't use TLS, use "
                "http:// in base_url. If its certificate is from a private authority, set SSL_CERT_FILE."
            )
        if isinstance(error, (core.TimeoutException, TimeoutError)) and not isinstance(
            error, core.ConnectTimeout
        ):
            return EndpointTimeoutError(
                f"{url} did not answer within {self._timeout:g} seconds. To fix this, increase timeout, send less "
                "in a request, or lower max_concurrent_requests."
            )
        if isinstance(error, (core.ConnectError, core.ConnectTimeout, core.ProxyError, OSError)):
            return EndpointUnreachableError(
                f"No server answers at {url} ({message or 'the connection timed out'}). Start the server, or "
                "correct base_url. Workers on other machines must be able to reach it."
            )
        return EndpointDisconnectedError(
            f"{url} closed the connection before the response was complete "
            f"({message or type(error).__name__}). If this keeps happening, check the server's log."
        )

    def status_error(self, url: str, status: int, headers: _Headers, body: bytes) -> EndpointError:
        """Return the error for a response with an error status."""
        if 300 <= status < 400:
            location = hide_secrets(headers["location"]) if "location" in headers else "no location"
            return self._server_error(
                f"{url} returned {status}", ServerError(location, status), None
            )
        found = read_error_body(body)
        described = replace(found, status=status)
        return self._server_error(f"{url} returned {status}", described, headers.get("retry-after"))

    def response_error(
        self, path: str, answer: Any, retry_after: str | None, error: Exception
    ) -> Exception:
        """Return the error for a response of status 200 that does not contain the results."""
        url, found = self._base_url + path, find_error(answer)
        if found is not None and found.status is not None:
            prefix = f"{url} returned 200 with an error that corresponds to status {found.status}"
            return self._server_error(prefix, found, retry_after)
        message = shorten(self._redactor.redact(str(error)), _MAX_MESSAGE)
        return type(error)(f"{url} returned an unexpected response. {message}.")

    def _server_error(
        self, prefix: str, found: ServerError, retry_after: str | None
    ) -> EndpointError:
        status = found.status or 0
        kind, hint = self._explain_status(status, found.is_quota)
        message = self._redactor.quote(found.message) or "no message"
        error = kind(f"{prefix}: {message}{'.' * bool(hint)} {hint}".strip())
        error.status_code = status
        error.usage = found.usage
        error.retry_after = (retry_after or found.retry_after or "")[:100] or None
        return error

    def _explain_status(self, status: int, is_quota: bool) -> tuple[type[EndpointError], str]:
        """Return the error class for a status, and a hint or an empty string."""
        if 300 <= status < 400:
            return EndpointRefusedError, (
                "Redirects are not followed, because they could send the key to another server. If you trust that "
                "URL, set base_url to it."
            )
        if is_quota:
            return (
                EndpointRefusedError,
                "Retries don't help. Check the plan and the quota of the key.",
            )
        if status >= 500:
            return EndpointError, "Check the server's log."
        key_hint = (
            "Check the credentials that auth provides."
            if self._has_auth
            else f"Check the key in the environment variable {self._api_key_env} (api_key_env)."
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

    def json_error(self, url: str, status: int, headers: _Headers, body: bytes) -> EndpointError:
        """Return the error for a response that is not JSON."""
        start = (
            self._redactor.quote(body[:MAX_ERROR_BYTES].decode(errors="replace")) or "an empty body"
        )
        content_type = headers.get("content-type", "").lower()
        if "html" in content_type:
            return UnusableAnswerError(
                f"{url} returned an HTML page instead of JSON: {start}. Correct base_url."
            )
        if "event-stream" in content_type:
            return UnusableAnswerError(
                f"{url} returned an event stream instead of JSON: {start}. Turn off streaming on the server."
            )
        return EndpointError(f"{url} returned {status} with invalid or incomplete JSON: {start}.")

    def size_error(self, url: str, max_bytes: int) -> EndpointError:
        """Return the error for a response that is too large."""
        return UnusableAnswerError(
            f"The response from {url} is larger than {max_bytes:,} bytes after decompression. To fix "
            "this, send fewer examples in a request (max_request_size), or raise max_response_bytes."
        )

    def encoding_error(self, url: str, encoding: str) -> EndpointError:
        """Return the error for a response with an unexpected compression."""
        quoted = repr(self._redactor.quote(encoding))
        return UnusableAnswerError(
            f"The response from {url} has the content encoding {quoted}, which was not requested. "
            "To fix this, configure the server or its proxy to respect the request header Accept-Encoding: "
            f"{ACCEPTED_ENCODINGS}."
        )
