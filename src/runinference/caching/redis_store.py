"""Results of models in Redis, which several machines share."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from runinference.caching.redis_connection import connect_redis

#: After this time, Redis removes the claims of processes that died. No call takes longer.
_MAX_CLAIM_MS = 7 * 86_400_000
#: Names in one command.
_MAX_NAMES = 500
_PREFIX = "runinference"

#: Deletes a claim, unless it has another owner.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"


class RedisStore:
    """A store in a Redis server.

    Args:
        url: The URL of the server, without a password.
        password_env: Name of the environment variable with the password; None if there is none.
        max_age_secs: Time in seconds after which a result is removed; None for no limit.

    Raises:
        ImportError: redis isn't installed.
    """

    def __init__(self, url: str, password_env: str | None, max_age_secs: float | None) -> None:
        self._redis = connect_redis(url, password_env)
        self._max_age_ms = None if max_age_secs is None else max(1, math.ceil(max_age_secs * 1_000))

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        return self._get_all("result", names)

    def write(self, entries: Mapping[str, bytes]) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for name, entry in entries.items():
                pipe.set(f"{_PREFIX}/result/{name}", entry, px=self._max_age_ms)
            pipe.execute()

    def claim(self, names: Sequence[str], owner: bytes) -> set[str]:
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.set(f"{_PREFIX}/claim/{name}", owner, nx=True, px=_MAX_CLAIM_MS)
            return {name for name, done in zip(names, pipe.execute(), strict=True) if done}

    def read_claims(self, names: Sequence[str]) -> dict[str, bytes]:
        return self._get_all("claim", names)

    def write_heartbeat(self, owner: bytes, heartbeat: bytes) -> None:
        key = f"{_PREFIX}/heartbeat/{owner.hex()}"
        if heartbeat:
            self._redis.set(key, heartbeat, px=_MAX_CLAIM_MS)
        else:
            self._redis.delete(key)

    def read_heartbeats(self, owners: Collection[bytes]) -> dict[bytes, bytes]:
        names = {owner.hex(): owner for owner in owners}
        found = self._get_all("heartbeat", [*names])
        return {owner: found.get(name, b"") for name, owner in names.items()}

    def release(self, claims: Mapping[str, bytes]) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for name, owner in claims.items():
                pipe.eval(_RELEASE, 1, f"{_PREFIX}/claim/{name}", owner)
            pipe.execute()

    def close(self) -> None:
        self._redis.close()

    def _get_all(self, kind: str, names: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for start in range(0, len(names), _MAX_NAMES):
            some = names[start : start + _MAX_NAMES]
            values = self._redis.mget([f"{_PREFIX}/{kind}/{name}" for name in some])
            found.update((k, v) for k, v in zip(some, values, strict=True) if v is not None)
        return found
