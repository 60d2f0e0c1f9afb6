"""URLs, passwords and connections of Redis servers."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from runinference.checks import check_text, is_secret_value
from runinference.errors import OptionError
from runinference.extras import need

#: Timeout in seconds for connecting, and for each response.
_TIMEOUT_SECS = 3
_SCHEMES = ("redis", "rediss", "unix")


def check_redis_url(
    option: str, url: str, password_option: str, expected: str = "the URL of a Redis server"
) -> None:
    """Raise ``OptionError`` unless a text is the URL of a Redis server, without a password.

    >>> check_redis_url("location", "redis://host:6379/0", "password_env")

    Args:
        option: Name of the option with the URL.
        url: The URL.
        password_option: Name of the option for the environment variable with the password.
        expected: Description of the valid values, for the error message.
    """
    try:
        parts = urlsplit(url)
        has_host = parts.scheme == "unix" or (bool(parts.hostname) and parts.port != 0)
    except ValueError:  # an invalid port
        reason = "isn't a valid URL"
    else:
        if parts.password or any(name != "db" for name, _ in parse_qsl(parts.query, True)):
            raise OptionError(
                f"{option} is a URL with a password or other options, which would be stored in the pipeline. To "
                f"fix this, leave them out, and set {password_option} to the name of an environment variable of "
                "the workers with the password."
            )
        if parts.scheme not in _SCHEMES:
            reason = f"has the scheme {parts.scheme!r}"
        elif not has_host:
            reason = "has no host"
        else:
            return
    raise OptionError(f"{option} must be {expected}, such as redis://host:6379/0, but {reason}.")


def check_password_env(option: str, name: Any) -> None:
    """Raise ``OptionError`` unless a value is the name of an environment variable.

    >>> check_password_env("password_env", "REDIS_PASSWORD")

    Args:
        option: Name of the option.
        name: The value.
    """
    check_text(option, name)
    if not name.isidentifier() or is_secret_value(name):
        raise OptionError(
            f"{option} must be the name of an environment variable, such as 'REDIS_PASSWORD', not the password "
            "itself, which would be stored in the pipeline."
        )


def connect_redis(url: str, password_env: str | None) -> Any:
    """Return a client of a Redis server, which connects on first use.

    Args:
        url: The URL of the server, without a password.
        password_env: Name of the environment variable with the password; None if there is none.

    Raises:
        ImportError: redis isn't installed.
    """
    redis = need("redis", extra="cache")
    backoff, retry = need("redis.backoff", extra="cache"), need("redis.retry", extra="cache")
    password = {"password": os.environ.get(password_env, "")} if password_env else {}
    return redis.Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_SECS,
        socket_connect_timeout=_TIMEOUT_SECS,
        # Retry if the server closed the connection, but not if it hangs.
        retry=retry.Retry(backoff.NoBackoff(), 1, (redis.ConnectionError,)),
        **password,
    )
