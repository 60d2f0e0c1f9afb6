"""A JSON client for HTTP endpoints. Its errors include the server's response, and never contain the key."""

from __future__ import annotations

import json
import threading
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlencode

from runinference.errors import (
    EndpointDisconnectedError,
    EndpointError,
    EndpointRefusedError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    ResultMismatchError,
    UnusableAnswerError,
    get_message,
)
from runinference.extras import need
from runinference.remote.auth import Auth
from runinference.remote.deadline import Deadline, DeadlineBackend
from runinference.remote.error_response import (
    ServerError,
    find_error,
    hide_secrets,
    read_error_body,
    shorten,
    strip_tags,
)
from runinference.remote.headers import SECRET_NAME, check_sent_headers
from runinference.remote.json_text import decode_json, encode_json
from runinference.remote.response_body import (
    ACCEPTED_ENCODINGS,
    BodyError,
    UnknownEncodingError,
    read_body,
)
from runinference.remote.retry import worth_retrying

#: The default maximum of a decompressed response.
MAX_RESPONSE_BYTES = 64 << 20

_MAX_ERROR_BYTES = 65_536  # read from an error response
_MAX_MESSAGE = 1_000  # characters about a response that doesn't follow the protocol
_MIN_SECRET = 8  # characters of a value that auth adds, whose name doesn't show that it is a secret
_Headers = Mapping[str, str]
_RawHeaders = Sequence[tuple[bytes, bytes]]


class Codec(Protocol):
    """The format of requests and responses."""

    def encode(self, body: Any) -> tuple[bytes, dict[str, str]]:
        """Return the content of a request, and its headers."""

    def decode(self, content: bytes, headers: Mapping[str, str]) -> Any:
        """Return the value of a response. Names of headers are in lower case."""


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
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        query: Mapping[str, str] | None = None,
        auth: Auth | None = None,
    ) -> None:
        """Create a client. Connections are opened on demand; ``api_key_env`` is only for error messages."""
        self._httpx: Any = need("httpx", extra="remote")
        self._core: Any = need("httpcore", extra="remote")
        core = self._core
        self._core_errors: tuple[type[Exception], ...] = (
            *(core.TimeoutException, core.NetworkError, core.ProtocolError, core.ProxyError),
            OSError,
        )
        self._base_url = base_url
        self._timeout = timeout
        self._max_response_bytes = max_response_bytes
        self._api_key = api_key
        self._api_key_env = api_key_env
        self._auth = auth
        self._query = f"?{urlencode(query, quote_via=quote)}" if query else ""
        self._sent = threading.local()  # credentials of the last request of each thread
        self._urls: dict[str, Any] = {}  # parsed URLs
        self._deadline = Deadline()
        self._headers = self._build_headers(headers)
        self._pool = self._create_pool(max_connections, bypass_proxy)

    def post(
        self, path: str, body: Any, parse: Callable[[Any], Any], codec: Codec | None = None
    ) -> Any:
        """Send a request, and return the result of ``parse`` for the response.

        Args:
            path: The path, which is appended to the base URL.
            body: The body.
            parse: Returns the results for a decoded response.
            codec: Encodes the body and decodes the response. By default, both are JSON.

        Raises:
            ElementError: The body can't be encoded.
            EndpointError: The server is unreachable, or its response is an error, too large or invalid.
            ResultMismatchError: ``parse`` raised it.
        """
        codec = codec or _JSON
        content, headers = codec.encode(body)
        answer, retry_after = self._request("POST", path, content, headers, codec)
        return self.parse_answer(path, answer, parse, retry_after)

    def parse_answer(
        self, path: str, answer: Any, parse: Callable[[Any], Any], retry_after: str | None = None
    ) -> Any:
        """Return the result of ``parse`` for a JSON response of status 200.

        Raises:
            EndpointError: The response is an error or invalid.
            ResultMismatchError: ``parse`` raised it.
        """
        try:
            return parse(answer)
        except (UnusableAnswerError, ResultMismatchError) as error:
            failed = self._answer_error(path, answer, retry_after, error)
        except RecursionError:
            failed = self._answer_error(
                path, None, None, UnusableAnswerError("It is nested too deeply.")
            )
        raise failed

    def get(self, path: str) -> Any:
        """Return the JSON response for a path."""
        return self._request("GET", path, None, {}, _JSON)[0]

    def upload(self, path: str, fields: Mapping[str, str], name: str, content: bytes) -> Any:
        """Send a file as a form with other fields, and return the JSON response."""
        boundary = f"runinference-{uuid.uuid4().hex}"
        form = _encode_form(boundary, fields, name, content)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return self._request("POST", path, form, headers, _JSON)[0]

    def download(self, path: str, max_bytes: int) -> bytes:
        """Return the bytes at a path, or raise ``EndpointError`` if there are more than ``max_bytes``."""
        _, _, body, error = self._try_request("GET", path, None, {}, max_bytes)
        if error is not None:
            raise error
        return body

    def status_error(self, path: str, status: int, body: Any) -> EndpointError:
        """Return the error for a JSON response with the status of an error."""
        return self._status_error(self._base_url + path, status, {}, encode_json(body))

    def _build_headers(self, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        """Return the headers of every request. Those given replace the defaults."""
        sent = {
            "host": ("Host", self._httpx.URL(self._base_url).netloc.decode("ascii")),
            "accept": ("Accept", "application/json, */*;q=0.5"),
            "accept-encoding": ("Accept-Encoding", ACCEPTED_ENCODINGS),
            "user-agent": ("User-Agent", "runinference"),
            "content-type": ("Content-Type", "application/json"),
        }
        sent |= {name.lower(): (name, value.strip()) for name, value in headers.items()}
        if self._api_key:
            sent["authorization"] = ("Authorization", f"Bearer {self._api_key}")
        return [(name.encode("ascii"), value.encode("latin-1")) for name, value in sent.values()]

    def _create_pool(self, max_connections: int, bypass_proxy: bool) -> Any:
        url = self._httpx.URL(self._base_url)
        options = {
            "ssl_context": self._httpx.create_ssl_context() if url.scheme == "https" else None,
            "max_connections": max_connections,
            "max_keepalive_connections": max_connections,
            "keepalive_expiry": 5.0,
            "network_backend": DeadlineBackend(self._core.SyncBackend(), self._deadline),
        }
        proxy = None if bypass_proxy else _find_proxy(url)
        if proxy is None:
            return self._core.ConnectionPool(**options)
        proxy = self._httpx.URL(proxy)
        pool = self._core.SOCKSProxy if proxy.scheme.startswith("socks") else self._core.HTTPProxy
        auth = (unquote(proxy.username), unquote(proxy.password)) if proxy.username else None
        address = self._core.URL(
            scheme=proxy.raw_scheme, host=proxy.raw_host, port=proxy.port, target=b"/"
        )
        return pool(address, proxy_auth=auth and tuple(part.encode() for part in auth), **options)

    def _request(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: Mapping[str, str],
        codec: Codec,
    ) -> tuple[Any, str | None]:
        """Return the decoded response, and the value of its header ``Retry-After``."""
        answer, retry_after, error = self._try_decode(method, path, content, headers, codec)
        if error is not None:
            # Raised here, where neither a local variable nor the error's context contains the key.
            raise error
        return answer, retry_after

    def _try_decode(
        self,
        method: str,
        path: str,
        content: bytes | None,
        more_headers: Mapping[str, str],
        codec: Codec,
    ) -> tuple[Any, str | None, EndpointError | None]:
        status, headers, body, error = self._try_request(
            method, path, content, more_headers, self._max_response_bytes
        )
        if error is not None:
            return None, None, error
        url = self._base_url + path
        try:
            return codec.decode(body, headers), headers.get("retry-after"), None
        except UnusableAnswerError as invalid:
            return None, None, UnusableAnswerError(f"{url} returned {status}. {invalid}")
        except ValueError:
            return None, None, self._json_error(url, status, headers, body)

    def _try_request(
        self,
        method: str,
        path: str,
        content: bytes | None,
        more_headers: Mapping[str, str],
        max_bytes: int,
    ) -> tuple[int, _Headers, bytes, EndpointError | None]:
        """Return status, headers and body of a successful response, or the error."""
        url = self._base_url + path
        sent = self._headers
        if more_headers:
            replaced = {name.lower().encode() for name in more_headers}
            sent = [item for item in sent if item[0].lower() not in replaced]
            sent += [(name.encode(), value.encode()) for name, value in more_headers.items()]
        error: EndpointError
        try:
            answer = self._send(method, url, sent, content, max_bytes)
        except _AuthError as failure:
            error = self._auth_error(url, failure.reason)
        except UnknownEncodingError as failure:
            error = self._encoding_error(url, str(failure))
        except BodyError as failure:
            error = EndpointError(f"The response of {url} can't be read ({failure}).")
        except self._core_errors as failure:
            error = self._transport_error(url, failure)
        else:
            if not 200 <= answer.status < 300:
                error = self._status_error(url, answer.status, answer.headers, answer.body)
            elif not answer.is_complete:
                error = self._size_error(url, max_bytes)
            else:
                return answer.status, answer.headers, answer.body, None
        return 0, {}, b"", error

    def _send(
        self,
        method: str,
        url: str,
        headers: _RawHeaders,
        content: bytes | None,
        max_bytes: int,
    ) -> _Answer:
        """Return the response to a request, or to the last one that the authentication sends."""
        url += self._query.replace("?", "&") if "?" in url else self._query
        if self._auth is None:
            return self._exchange(method, url, headers, content, max_bytes)
        request = self._httpx.Request(method, url, headers=headers, content=content)
        known = {*_list_values(request)}
        flow = _Flow(self._auth, request)
        try:
            while True:
                request = flow.request
                sent = request.headers.raw
                self._sent.secrets = _find_secrets(known, _list_values(request))
                answer = self._exchange(
                    request.method, str(request.url), sent, request.read() or None, max_bytes
                )
                if not flow.proceed(self._to_httpx(answer, request)):
                    return answer
        finally:
            flow.close()

    def _to_httpx(self, answer: _Answer, request: Any) -> Any:
        # The body is decompressed.
        headers = [item for item in answer.raw_headers if item[0].lower() != b"content-encoding"]
        return self._httpx.Response(
            answer.status, headers=headers, content=answer.body, request=request
        )

    def _exchange(
        self,
        method: str,
        url: str,
        headers: _RawHeaders,
        content: bytes | None,
        max_bytes: int,
    ) -> _Answer:
        if content is not None and not any(
            name.lower() == b"content-length" for name, _ in headers
        ):
            headers = [*headers, (b"Content-Length", str(len(content)).encode())]
        with (
            self._deadline.within(self._timeout),
            self._pool.stream(
                method,
                self._parse_url(url),
                headers=headers,
                content=content,
                extensions={"timeout": {"pool": self._timeout}},
            ) as response,
        ):
            status = response.status
            received = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in response.headers
            }
            is_success = 200 <= status < 300
            limit = max_bytes if is_success else _MAX_ERROR_BYTES
            encoding = received.get("content-encoding", "")
            try:
                body, complete = read_body(response.iter_stream(), encoding, limit)
            except BodyError:
                if is_success:
                    raise
                body, complete = b"", False  # the status is enough
            return _Answer(status, received, response.headers, body, complete)

    def _parse_url(self, text: str) -> Any:
        if text not in self._urls:
            url = self._httpx.URL(text)
            parsed = self._core.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            )
            if self._auth is not None:
                return parsed  # it may contain a signature
            self._urls[text] = parsed
        return self._urls[text]

    def _auth_error(self, url: str, reason: Exception) -> EndpointError:
        """Return the error for credentials that can't be obtained. It is retried if the reason may pass."""
        may_pass = worth_retrying(reason) and not isinstance(reason, LookupError)
        kind = EndpointUnreachableError if may_pass else EndpointRefusedError
        message = self._quote(f"{type(reason).__name__}: {get_message(reason)}")
        return kind(f"No request was sent to {url}, because auth failed ({message}).")

    def _transport_error(self, url: str, error: Exception) -> EndpointError:
        core, message = self._core, self._quote(str(error))
        if isinstance(error, core.ConnectError) and "SSL" in message:
            return EndpointUnreachableError(
                f"Can't open an encrypted connection to {url} ({message}). If the server doesn't use TLS, start "
                "base_url with http. If its certificate is from a private authority, set SSL_CERT_FILE."
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

    def _status_error(self, url: str, status: int, headers: _Headers, body: bytes) -> EndpointError:
        if 300 <= status < 400:
            location = hide_secrets(headers["location"]) if "location" in headers else "no location"
            return self._server_error(
                f"{url} returned {status}", ServerError(location, status), None
            )
        found = read_error_body(body)
        described = replace(found, status=status)
        return self._server_error(f"{url} returned {status}", described, headers.get("retry-after"))

    def _answer_error(
        self, path: str, answer: Any, retry_after: str | None, error: Exception
    ) -> Exception:
        """Return the error for a response of status 200 that does not contain the results."""
        url, found = self._base_url + path, find_error(answer)
        if found is not None and found.status is not None:
            prefix = f"{url} returned 200 with an error that stands for {found.status}"
            return self._server_error(prefix, found, retry_after)
        message = shorten(self.redact_key(str(error)), _MAX_MESSAGE)
        return type(error)(f"{url} returned an unexpected response. {message}.")

    def _server_error(
        self, prefix: str, found: ServerError, retry_after: str | None
    ) -> EndpointError:
        status = found.status or 0
        kind, hint = self._explain_status(status, found.is_quota)
        message = self._quote(found.message) or "no message"
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
            if self._auth is not None
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

    def _json_error(self, url: str, status: int, headers: _Headers, body: bytes) -> EndpointError:
        start = self._quote(body[:_MAX_ERROR_BYTES].decode(errors="replace")) or "an empty body"
        content_type = headers.get("content-type", "").lower()
        if "html" in content_type:
            return UnusableAnswerError(
                f"{url} returned an HTML page instead of JSON: {start}. Correct base_url."
            )
        if "event-stream" in content_type:
            return UnusableAnswerError(
                f"{url} returned a stream of events instead of JSON: {start}. Turn off streaming on the server."
            )
        return EndpointError(f"{url} returned {status} with invalid or incomplete JSON: {start}.")

    def _size_error(self, url: str, max_bytes: int) -> EndpointError:
        return UnusableAnswerError(
            f"The response of {url} is larger than {max_bytes:,} bytes after decompression. To fix "
            "this, send fewer examples in a request (max_request_size), or raise max_response_bytes."
        )

    def _encoding_error(self, url: str, encoding: str) -> EndpointError:
        return UnusableAnswerError(
            f"The response of {url} has the content encoding {self._quote(encoding)!r}, which was not requested. "
            "To fix this, configure the server or its proxy to respect the request header Accept-Encoding: "
            f"{ACCEPTED_ENCODINGS}."
        )

    def _quote(self, text: str) -> str:
        """Return the start of a text on one line, without HTML tags and without the key."""
        return shorten(strip_tags(self.redact_key(text)))

    def redact_key(self, text: str) -> str:
        """Return a text without the key, and without the credentials of this thread's last request."""
        for secret in getattr(self._sent, "secrets", ()):
            text = text.replace(secret, "[the key]")
        if self._api_key:
            for key in (self._api_key, _to_json_text(self._api_key), _to_url_text(self._api_key)):
                text = text.replace(key, "[the key]")
        return text


class _JsonCodec:
    @staticmethod
    def encode(body: Any) -> tuple[bytes, dict[str, str]]:
        return encode_json(body), {}

    @staticmethod
    def decode(content: bytes, headers: Mapping[str, str]) -> Any:
        return decode_json(content)


_JSON = _JsonCodec()


class _Answer(NamedTuple):
    """A response with a decompressed body, which is incomplete if it is too long."""

    status: int
    headers: _Headers
    raw_headers: _RawHeaders
    body: bytes
    is_complete: bool


class _AuthError(Exception):
    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason


class _Flow:
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
            raise _AuthError(error) from None
        return request


def _list_values(request: Any) -> list[tuple[str, str]]:
    """Return the names and values of the headers and the query parameters of a request."""
    return [*request.headers.multi_items(), *request.url.params.multi_items()]


def _find_secrets(known: Set[tuple[str, str]], sent: Sequence[tuple[str, str]]) -> list[str]:
    """Return the values that an authentication added to a request, the longest first."""
    secrets = set()
    for name, text in sent:
        is_secret = SECRET_NAME.search(name) or len(text) >= _MIN_SECRET
        if is_secret and text and (name, text) not in known:
            secrets |= {text, text.partition(" ")[2] or text}
    quoted = {form(text) for text in secrets for form in (_to_json_text, _to_url_text)}
    return sorted(secrets | quoted, key=len, reverse=True)


def _to_json_text(text: str) -> str:
    return json.dumps(text)[1:-1]


def _to_url_text(text: str) -> str:
    return quote(text, safe="")


def _encode_form(boundary: str, fields: Mapping[str, str], name: str, content: bytes) -> bytes:
    """Return a form of the type ``multipart/form-data``, with fields and a file."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    return "".join([*parts, head]).encode() + content + f"\r\n--{boundary}--\r\n".encode()


def _find_proxy(url: Any) -> str | None:
    """Return the proxy that the environment sets for a URL, if any."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
