"""Limits per minute that the processes of several machines share in Redis, and that never stop a job."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import redis_server
from runinference.errors import OptionError
from runinference.openai_inference import OpenAIChatModelHandler
from runinference.remote.shared_rate import RateStore, SharedRequestRate
from runinference.samples import servers

needs_redis = pytest.mark.skipif(redis_server.find() is None, reason=redis_server.HINT)


@pytest.fixture(scope="module")
def redis_url():
    with redis_server.serving() as url:
        yield url


def rate(url, name, waits):
    """Return a limit of 6,000 tokens per minute, 600 at once and 90 per second, that doesn't wait."""
    return SharedRequestRate(None, 6_000, RateStore(url, None, name), waits.append)


@needs_redis
def test_limiters_of_one_name_share_a_bucket(redis_url):
    waits = []
    rate(redis_url, "shared", waits).acquire(600)
    assert not waits
    rate(redis_url, "shared", waits).acquire(90_000)
    rate(redis_url, "shared", waits).acquire(90)
    assert waits == [pytest.approx(6.7, abs=3), pytest.approx(1_001, abs=10)]
    rate(redis_url, "another", waits).acquire(600)
    assert len(waits) == 2


@needs_redis
def test_corrections_delay_or_advance_later_requests(redis_url):
    waits = []
    limiter = rate(redis_url, "corrected", waits)
    limiter.acquire(300)
    limiter.correct(90_000)
    limiter.acquire(300)
    assert waits == [pytest.approx(1_000, abs=10)]
    limiter.correct(-1_000_000)  # never more than the bucket holds
    limiter.acquire(600)
    assert len(waits) == 1
    limiter.acquire(600)
    assert waits[1] == pytest.approx(6.7, abs=3)


@needs_redis
def test_another_process_shares_the_limit(redis_url):
    program = (
        "from runinference.remote.shared_rate import RateStore, SharedRequestRate\n"
        f"SharedRequestRate(None, 6_000, RateStore({redis_url!r}, None, 'job')).acquire(1_000_000)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    waits = []
    rate(redis_url, "job", waits).acquire(1)
    assert waits[0] > 3_600


@needs_redis
def test_a_handler_uses_the_store(redis_url):
    import redis

    with servers.llm() as url:
        options = {"max_requests_per_minute": 60_000, "max_tokens_per_minute": 60_000}
        handler = OpenAIChatModelHandler(url, "shout", None, rate_limit_store=redis_url, **options)
        [result] = pickle.loads(pickle.dumps(handler)).predict(["one two"])
    assert result.inference.text == "ONE TWO"
    keys = redis.Redis.from_url(redis_url).keys("runinference/rate/*/requests")
    assert len(keys) == 1


def test_a_store_that_is_down_leaves_each_process_its_own_limit(caplog):
    caplog.set_level("WARNING")
    with servers.llm() as url:
        handler = OpenAIChatModelHandler(
            url,
            "shout",
            None,
            rate_limit_store="redis://127.0.0.1:1/0",
            max_requests_per_minute=60_000,
        )
        results = handler.predict([f"text {n}" for n in range(30)])
    assert len(results) == 30
    assert caplog.text.count("each process has its own limit") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate_limit_store": "redis://me:secret@host"}, "set rate_limit_password_env"),
        ({"rate_limit_store": "redis://host?password=secret"}, "set rate_limit_password_env"),
        ({"rate_limit_store": "http://host"}, "must be the URL of a Redis server"),
        ({"rate_limit_store": "redis://host:99999"}, "must be the URL of a Redis server"),
        ({"rate_limit_store": ""}, "rate_limit_store must be a non-empty string"),
        (
            {"rate_limit_store": "redis://host", "rate_limit_password_env": "sk-0123456789abcdef"},
            "not the password itself",
        ),
        ({"rate_limit_store": "redis://host", "max_requests_per_minute": None}, "has no effect"),
        ({"rate_limit_password_env": "PASSWORD"}, "has no effect without rate_limit_store"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(OptionError, match=message) as raised:
        OpenAIChatModelHandler(
            "http://localhost", "m", None, **{"max_requests_per_minute": 5, **options}
        )
    assert "secret" not in str(raised.value)
