"""Remove API keys and other credentials from server responses that error messages quote."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence, Set
from urllib.parse import quote

from runinference.remote.error_response import shorten, strip_tags
from runinference.remote.headers import SECRET_NAME

_MIN_SECRET = 8  # characters from which a value that auth adds counts as a secret under any name
_Values = Sequence[tuple[str, str]]


class Redactor:
    """Removes the API key, and the credentials of this thread's last request, from text.

    Args:
        key: The key; None or empty if there is none.
    """

    def __init__(self, key: str | None) -> None:
        self._of_key = _list_encodings({key}) if key else []
        self._sent = threading.local()

    def record_sent(self, known: Set[tuple[str, str]], sent: _Values) -> None:
        """Remember the credentials of a request.

        Args:
            known: Names and values of headers and query parameters before the authentication.
            sent: Names and values of headers and query parameters after the authentication.
        """
        secrets = set()
        for name, text in sent:
            is_secret = SECRET_NAME.search(name) or len(text) >= _MIN_SECRET
            if is_secret and text and (name, text) not in known:
                secrets |= {text, text.partition(" ")[2] or text}
        self._sent.secrets = _list_encodings(secrets)

    def redact(self, text: str) -> str:
        """Return a text with ``[the key]`` instead of each secret."""
        for secret in [*getattr(self._sent, "secrets", ()), *self._of_key]:
            text = text.replace(secret, "[the key]")
        return text

    def quote(self, text: str) -> str:
        """Return the start of a text on one line, without HTML tags and secrets."""
        return shorten(strip_tags(self.redact(text)))


def _list_encodings(secrets: Set[str]) -> list[str]:
    """Return each secret unchanged, JSON-escaped, and URL-encoded, longest first."""
    in_json = {json.dumps(text)[1:-1] for text in secrets}
    in_urls = {quote(text, safe="") for text in secrets}
    return sorted(secrets | in_json | in_urls, key=len, reverse=True)
