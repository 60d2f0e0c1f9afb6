"""The options of a cache of results."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

from runinference.caching.cache_directory import cache_directory
from runinference.caching.disk_store import DiskStore
from runinference.caching.guarded_store import GuardedStore
from runinference.caching.redis_connection import check_password_env, check_redis_url
from runinference.caching.redis_store import RedisStore
from runinference.checks import check_int, check_seconds, check_text
from runinference.errors import OptionError
from runinference.extras import need

_DEFAULT_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class CacheOptions:
    """The options of ``with_cache``. They never contain a password.

    Attributes:
        max_call_secs: Time in seconds after which a call is abandoned; None if there is no timeout.
    """

    location: str | None
    version: str | None
    max_bytes: int
    max_age_secs: float | None
    password_env: str | None
    trusted_types: tuple[type, ...]
    claim_secs: float
    max_call_secs: float | None = None

    @classmethod
    def create(
        cls,
        location: Any,
        version: Any,
        max_bytes: Any,
        max_age_secs: Any,
        password_env: Any,
        trusted_types: Any,
        claim_secs: Any,
    ) -> CacheOptions:
        """Check options.

        Raises:
            OptionError: A value is invalid, the URL contains a password, or options conflict.
            ImportError: diskcache or redis isn't installed.
        """
        place = _check_location(location)
        is_redis = _is_url(place)
        if version is not None:
            check_text("version", version)
        if max_bytes is not None:
            check_int("max_bytes", max_bytes)
        if max_age_secs is not None:
            check_seconds("max_age_secs", max_age_secs)
        check_seconds("claim_secs", claim_secs)
        if max_bytes is not None and is_redis:
            raise OptionError(
                "max_bytes has no effect on Redis. To fix this, leave it out, and set maxmemory and "
                "maxmemory-policy in the configuration of the server."
            )
        if password_env is not None:
            check_password_env("password_env", password_env)
            if not is_redis:
                raise OptionError(
                    "password_env has no effect on a folder. To fix this, leave it out."
                )
        need("redis" if is_redis else "diskcache", extra="cache")
        return cls(
            location=place,
            version=version,
            max_bytes=_DEFAULT_MAX_BYTES if max_bytes is None else max_bytes,
            max_age_secs=max_age_secs,
            password_env=password_env,
            trusted_types=_list_types(trusted_types),
            claim_secs=claim_secs,
        )

    def open(self) -> GuardedStore:
        """Return the store, which is opened on first use."""
        place = str(cache_directory() / "results") if self.location is None else self.location
        if _is_url(place):
            open_store: Any = partial(RedisStore, place, self.password_env, self.max_age_secs)
        else:
            place = os.path.expanduser(place)
            open_store = partial(DiskStore, place, self.max_bytes, self.max_age_secs)
        return GuardedStore(open_store, place)


def _list_types(types: Any) -> tuple[type, ...]:
    if not isinstance(types, (list, tuple, set, frozenset)) or not all(
        isinstance(each, type) for each in types
    ):
        raise OptionError(f"trusted_types must be a list of classes, but is {types!r}.")
    return tuple(types)


def _is_url(place: str | None) -> bool:
    return place is not None and "://" in place


def _check_location(location: Any) -> str | None:
    """Return a folder or a URL as text; None for the default folder."""
    if location is None:
        return None
    place = os.fspath(location) if isinstance(location, os.PathLike) else location
    if not isinstance(place, str) or not place:
        raise OptionError(
            f"location must be a folder, or the URL of a Redis server, but is of type {type(location).__name__}."
        )
    if not _is_url(place):
        return place
    expected = "a folder on a local disk, or the URL of a Redis server"
    check_redis_url("location", place, "password_env", expected)
    return place
