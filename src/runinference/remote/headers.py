"""Checks of the headers of requests, and of the keys in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runinference.checks import SECRET_VALUE
from runinference.errors import OptionError

SECRET_NAME = re.compile("auth|key|token|secret|cookie|passw|credential|signature", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
# Headers that the client sets for each request, or can't support.
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


def check_sent_headers(headers: Mapping[str, str]) -> None:
    """Raise ``OptionError``, without the value, if HTTP can't represent a header with credentials.

    HTTP libraries quote the value in their errors about invalid headers.
    """
    for name, value in headers.items():
        if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
            raise OptionError(
                f"The header {name!r} that auth sets contains a line break or other invalid characters."
            )


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
