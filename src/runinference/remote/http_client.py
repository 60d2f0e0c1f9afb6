"""A JSON client for HTTP endpoints. Its errors include the server's response, and never contain the key."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlencode

from runinference.errors import EndpointError, ResultMismatchError, UnusableAnswerError
from runinference.extras import need
from runinference.remote.auth import Auth, AuthError, AuthRequests
from runinference.remote.deadline import Deadline, DeadlineBackend
from runinference.remote.http_errors import MAX_ERROR_BYTES, HttpErrors
from runinference.remote.json_text import decode_json, encode_json
from runinference.remote.redaction import Redactor
from runinference.remote.response_body import (
    ACCEPTED_ENCODINGS,
    BodyError,
    UnknownEncodingError,
    read_body,
)

#: The default maximum of a decompressed response.
MAX_RESPONSE_BYTES = 64 << 20

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
        self._auth = auth
        self._query = f"?{urlencode(query, quote_via=quote)}" if query else ""
        self._redactor = Redactor(api_key)
        self._errors = HttpErrors(base_url, timeout, api_key_env, auth is not None, self._redactor)
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
        return self.parse_response(path, answer, parse, retry_after)

    def parse_response(
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
            failed = self._errors.response_error(path, answer, retry_after, error)
        except RecursionError:
            failed = self._errors.response_error(
                path, None, None, UnusableAnswerError("It is nested too deeply.")
            )
        raise failed

    def get(self, path: str) -> Any:
        """Return the JSON response for a path."""
        return self._request("GET", path, None, {}, _JSON)[0]

    def upload(self, path: str, fields: Mapping[str, str], name: str, content: bytes) -> Any:
        """Send a file as a form with other fields, and return the JSON response."""
        files = {"file": (name, content, "application/jsonl")}
        form = self._httpx.Request("POST", self._base_url, data=fields, files=files)
        headers = {"Content-Type": form.headers["Content-Type"]}
        return self._request("POST", path, form.read(), headers, _JSON)[0]

    def download(self, path: str, max_bytes: int) -> bytes:
        """Return the bytes at a path, or raise ``EndpointError`` if there are more than ``max_bytes``."""
        _, _, body, error = self._try_request("GET", path, None, {}, max_bytes)
        if error is not None:
            raise error
        return body

    def status_error(self, path: str, status: int, body: Any) -> EndpointError:
        """Return the error for a JSON response with the status of an error."""
        return self._errors.status_error(self._base_url + path, status, {}, encode_json(body))

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
            return None, None, self._errors.json_error(url, status, headers, body)

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
        except AuthError as failure:
            error = self._errors.auth_error(url, failure.reason)
        except UnknownEncodingError as failure:
            error = self._errors.encoding_error(url, str(failure))
        except BodyError as failure:
            error = EndpointError(f"The response from {url} can't be read ({failure}).")
        except self._core_errors as failure:
            error = self._errors.transport_error(url, failure)
        else:
            if not 200 <= answer.status < 300:
                error = self._errors.status_error(url, answer.status, answer.headers, answer.body)
            elif not answer.is_complete:
                error = self._errors.size_error(url, max_bytes)
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
    ) -> _Response:
        """Return the response to a request, or to the last one that the authentication sends."""
        url += self._query.replace("?", "&") if "?" in url else self._query
        if self._auth is None:
            return self._exchange(method, url, headers, content, max_bytes)
        request = self._httpx.Request(method, url, headers=headers, content=content)
        known = {*_list_values(request)}
        flow = AuthRequests(self._auth, request)
        try:
            while True:
                request = flow.request
                sent = request.headers.raw
                self._redactor.record_sent(known, _list_values(request))
                answer = self._exchange(
                    request.method, str(request.url), sent, request.read() or None, max_bytes
                )
                if not flow.proceed(self._to_httpx(answer, request)):
                    return answer
        finally:
            flow.close()

    def _to_httpx(self, answer: _Response, request: Any) -> Any:
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
    ) -> _Response:
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
            limit = max_bytes if is_success else MAX_ERROR_BYTES
            encoding = received.get("content-encoding", "")
            try:
                body, complete = read_body(response.iter_stream(), encoding, limit)
            except BodyError:
                if is_success:
                    raise
                body, complete = b"", False  # the status is enough
            return _Response(status, received, response.headers, body, complete)

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

    def redact_key(self, text: str) -> str:
        """Return a text without the key, and without the credentials of this thread's last request."""
        return self._redactor.redact(text)


class _JsonCodec:
    @staticmethod
    def encode(body: Any) -> tuple[bytes, dict[str, str]]:
        return encode_json(body), {}

    @staticmethod
    def decode(content: bytes, headers: Mapping[str, str]) -> Any:
        return decode_json(content)


_JSON = _JsonCodec()


class _Response(NamedTuple):
    """A response with a decompressed body, which is incomplete if it is too long."""

    status: int
    headers: _Headers
    raw_headers: _RawHeaders
    body: bytes
    is_complete: bool


def _list_values(request: Any) -> list[tuple[str, str]]:
    """Return the names and values of the headers and the query parameters of a request."""
    return [*request.headers.multi_items(), *request.url.params.multi_items()]


def _find_proxy(url: Any) -> str | None:
    """Return the proxy that the environment sets for a URL, if any."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
