"""One request of JSON and its answer; what is said when it fails, and never the key."""

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

#: So much of what a server says is read if it refuses a request, and so much of that is quoted.
_READ_BYTES = 65_536
_QUOTED_CHARACTERS = 300
_CONNECT_SECS = 10.0
_TAGS = re.compile(r"<(style|script)\b.*?</\1>|<[a-z/!][^>]*>", re.DOTALL | re.IGNORECASE)


class Client:
    """Sends requests to an endpoint, from several threads; nothing that it raises knows the key."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None,
        key_name: str | None,
        headers: Mapping[str, str],
        timeout: float,
        connections: int,
        direct: bool,
    ) -> None:
        """Opens no connection yet.

        Args:
            base_url: The address that paths are appended to.
            key: Sent as a bearer token with each request.
            key_name: What errors call the key.
            headers: Further headers of each request.
            timeout: Seconds for a request.
            connections: The most at a time.
            direct: Whether to pass by the proxy that the environment names.
        """
        self._httpx: Any = need("httpx", extra="remote")
        self._base_url = base_url
        self._timeout = timeout
        self._key = key
        self._key_name = key_name
        self._urls: dict[str, Any] = {}  # parsed once
        self._http = self._httpx.Client(
            headers={
                **headers,
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {key}"} if key else {}),
            },
            timeout=self._httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECS)),
            limits=self._httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections
            ),
            mounts=dict.fromkeys(("http://", "https://", "all://")) if direct else {},
            follow_redirects=False,
        )

    def post(self, path: str, body: Any, read: Callable[[Any], Any]) -> Any:
        """What ``read`` makes of the parsed answer to a request.

        Raises:
            ElementError: The body cannot be written as JSON.
            EndpointError: The endpoint was not reached, refused, failed, or answered with something else.
            ResultMismatchError: ``read`` found more or fewer results than were asked for.
        """
        try:
            content = json.dumps(body, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise ElementError(
                f"A request cannot be written as JSON ({error}). Convert elements with with_preprocess_fn, and "
                "give inference_args of numbers, texts, lists and dictionaries."
            ) from error
        answer = self._ask("POST", path, content)
        try:
            return read(answer)
        except (UnusableAnswerError, ResultMismatchError) as error:
            url, said = self._base_url + path, self._without_key(str(error))
            failed = type(error)(f"{url} did not answer as expected. {said}")
        raise failed

    def get(self, path: str) -> Any:
        """What is at a path, parsed; raises as ``post`` does."""
        return self._ask("GET", path, None)

    def _ask(self, method: str, path: str, content: bytes | None) -> Any:
        answer, failed = self._asked(method, path, content)
        if failed is not None:
            raise failed  # here, where it has no context: httpx's error knows the request with its headers
        return answer

    def _asked(
        self, method: str, path: str, content: bytes | None
    ) -> tuple[Any, EndpointError | None]:
        """The parsed answer, or what went wrong."""
        url = self._base_url + path
        if path not in self._urls:
            self._urls[path] = self._httpx.URL(url)
        try:
            status, headers, body = self._exchange(method, self._urls[path], content)
        except self._httpx.HTTPError as error:
            return None, self._no_answer(url, error)
        if not 200 <= status < 300:
            return None, self._refusal(url, status, headers, body)
        try:
            return json.loads(body), None
        except ValueError:
            return None, self._no_json(url, status, headers, body)

    def _exchange(
        self, method: str, url: Any, content: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        deadline = time.monotonic() + self._timeout
        with self._http.stream(method, url, content=content) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > deadline:
                    raise self._httpx.ReadTimeout("it sent its answer too slowly")
                if not response.is_success and len(body) > _READ_BYTES:
                    break
            return response.status_code, response.headers, bytes(body)

    def _no_answer(self, url: str, error: Exception) -> EndpointError:
        httpx, said = self._httpx, self._quoted(str(error))
        if isinstance(error, httpx.ConnectError) and "SSL" in said:
            return EndpointUnreachableError(
                f"No encrypted connection to {url} ({said}). If the server does not encrypt, its address begins "
                "with http; if its certificate is of an authority of your own, name that in SSL_CERT_FILE."
            )
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
            return EndpointUnreachableError(
                f"No server answers at {url} ({said or 'it took too long to connect'}). Start it, or correct "
                "base_url. Workers on other machines must reach it too."
            )
        if isinstance(error, httpx.TimeoutException):
            return EndpointTimeoutError(
                f"{url} did not answer within {self._timeout:g} seconds (timeout). Give it longer, ask for "
                "less in a request, or lower max_concurrent_requests."
            )
        if isinstance(error, httpx.TransportError):
            return EndpointDisconnectedError(
                f"{url} broke the connection before its answer was there ({said or type(error).__name__}). If it "
                "goes on doing so, look at the server's log."
            )
        return EndpointError(f"The answer of {url} cannot be read ({said}).")

    def _refusal(
        self, url: str, status: int, headers: Mapping[str, str], body: bytes
    ) -> EndpointError:
        kind, cure = _refusals(self._base_url, self._key_name).get(status, (EndpointError, ""))
        said = self._quoted(_message(body))
        if 300 <= status < 400:
            kind, said = EndpointRefusedError, self._quoted(headers.get("location", "nowhere"))
            cure = (
                "Redirects are not followed, lest the key go elsewhere: set base_url to that address, if "
                "you trust it."
            )
        if status >= 500:
            cure = "The fault is the server's: look at its log."
        error = kind(
            f"{url} answered {status}: {said or 'nothing else'}{'.' * bool(cure)} {cure}".strip()
        )
        error.status_code, error.retry_after = status, headers.get("retry-after")
        return error

    def _no_json(
        self, url: str, status: int, headers: Mapping[str, str], body: bytes
    ) -> EndpointError:
        begins = self._quoted(body[:_READ_BYTES].decode(errors="replace")) or "nothing"
        if "html" in headers.get("content-type", ""):
            return UnusableAnswerError(
                f"{url} answered with a page for people, not with JSON: {begins}. Correct base_url."
            )
        return EndpointError(
            f"{url} answered {status} with what is no JSON, or only a part of it: {begins}."
        )

    def _quoted(self, text: str) -> str:
        """A part of what the server said, in one line, without tags and without the key."""
        text = re.sub(_TAGS, " ", self._without_key(text))
        text = " ".join(text.split()).rstrip(" .")
        return text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + " ..."

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[the key]") if self._key else text


def _refusals(base_url: str, key_name: str | None) -> dict[int, tuple[type[EndpointError], str]]:
    """The error and the cure for some statuses."""
    key = (
        f"Check the key in the environment variable {key_name} (api_key_env)."
        if key_name
        else "Give the name of the environment variable that holds the key: api_key_env."
    )
    address = f"Check base_url ({base_url}) and the name of the model."
    wait = "Lower max_concurrent_requests, or wait longer: num_retries, backoff."
    return {
        401: (EndpointRefusedError, key),
        403: (EndpointError, key),
        404: (EndpointRefusedError, address),
        405: (EndpointRefusedError, address),
        413: (EndpointError, "Lower max_request_size."),
        429: (EndpointError, wait),
    }


def _message(body: bytes) -> str:
    """What a server says went wrong, wherever its kind of server puts that; else all that it says."""
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
    except ValueError:
        return text
    while isinstance(said, dict):
        name = next(
            (name for name in ("error", "message", "detail", "msg") if said.get(name)), None
        )
        if name is None:
            break
        said = said[name]
    return said if isinstance(said, str) else json.dumps(said)
