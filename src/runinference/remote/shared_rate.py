"""Limits on requests and tokens per minute that all workers share, in a Redis server."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from runinference.caching.redis_connection import (
    check_password_env,
    check_redis_url,
    connect_redis,
)
from runinference.checks import check_text
from runinference.errors import describe
from runinference.extras import need
from runinference.remote.request_rate import RequestRate, TokenBucket

#: How long the store isn't used after it failed.
_PAUSE_SECS = 10.0
_PREFIX = "runinference/rate"
_logger = logging.getLogger(__name__)

#: Takes an amount from each bucket, and returns how many seconds to wait before using it. Amounts that are taken
#: later wait longer, so that all workers get their turn. The clock is that of the server. Each bucket has three
#: arguments: the amount, the bucket's capacity, and the refill rate per second.
_TAKE = """
local time = redis.call('TIME')
local now, wait = time[1] + time[2] / 1e6, 0
for i, key in ipairs(KEYS) do
  local amount, capacity, rate = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local state = redis.call('HMGET', key, 'level', 'time')
  local level, before = tonumber(state[1] or capacity), tonumber(state[2] or now)
  level = math.min(tonumber(capacity), level + math.max(0, now - before) * rate)
  wait = math.max(wait, (math.min(amount, capacity) - level) / rate)
  level = math.min(tonumber(capacity), level - amount)
  redis.call('HSET', key, 'level', tostring(level), 'time', tostring(now))
  redis.call('PEXPIRE', key, math.ceil(1000 * ((capacity - level) / rate + 60)))
end
return tostring(wait)
"""


@dataclass(frozen=True)
class RateStore:
    """Where workers share a limit on the rate of requests.

    Attributes:
        url: The URL of a Redis server, without a password.
        password_env: Name of the environment variable with its password; None if there is none.
        name: Name of the limit. Workers with the same name share it.

    Raises:
        OptionError: The URL is invalid or contains a password.
        ImportError: redis isn't installed.
    """

    url: str
    password_env: str | None
    name: str

    def __post_init__(self) -> None:
        check_text("rate_limit_store", self.url)
        check_redis_url("rate_limit_store", self.url, "rate_limit_password_env")
        if self.password_env is not None:
            check_password_env("rate_limit_password_env", self.password_env)
        need("redis", extra="cache")


class SharedRequestRate(RequestRate):
    """A rate limit that all workers with the same store share.

    While the store is down, each process has a separate limit.
    """

    def __init__(
        self,
        max_requests: float | None,
        max_tokens: float | None,
        store: RateStore,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(max_requests, max_tokens)
        name = hashlib.sha256(store.name.encode()).hexdigest()[:32]
        self._buckets = {
            kind: (f"{_PREFIX}/{name}/{kind}", TokenBucket(limit))
            for kind, limit in (("requests", max_requests), ("tokens", max_tokens))
            if limit is not None
        }
        self._sleep = sleep
        self._url = store.url
        self._script = connect_redis(store.url, store.password_env).register_script(_TAKE)
        self._lock = threading.Lock()
        self._paused_until = 0.0

    def acquire(self, n_tokens: float) -> None:
        wait = self._take({"requests": 1.0, "tokens": n_tokens})
        if wait is None:
            super().acquire(n_tokens)
        elif wait > 0:
            self._sleep(wait)

    def correct(self, n_tokens: float) -> None:
        if n_tokens and self._take({"tokens": n_tokens}) is None:
            super().correct(n_tokens)

    def _take(self, amounts: dict[str, float]) -> float | None:
        """Take amounts, and return the seconds to wait; None if the store is down."""
        used = [(*self._buckets[kind], n) for kind, n in amounts.items() if kind in self._buckets]
        if not used:
            return 0.0
        with self._lock:
            if time.monotonic() < self._paused_until:
                return None
        keys = [key for key, _, _ in used]
        arguments = [
            value
            for _, bucket, amount in used
            for value in (amount, bucket.capacity, bucket.per_second)
        ]
        try:
            return float(self._script(keys=keys, args=arguments))
        except Exception as error:
            self._pause(error)
            return None

    def _pause(self, error: Exception) -> None:
        """Don't use the store for a while."""
        with self._lock:
            now = time.monotonic()
            is_new = now >= self._paused_until
            self._paused_until = now + _PAUSE_SECS
        if is_new:
            _logger.warning(
                "The store of rate limits at %s fails, and each process has its own limit for %d seconds: %s",
                self._url,
                _PAUSE_SECS,
                describe(error, 300),
            )
