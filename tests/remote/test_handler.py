"""Requests run together and in order, are tried again when that may help, and share nothing."""

from __future__ import annotations

import copy
import http.client
import inspect
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import apache_beam as beam
import httpx
import numpy as np
import pandas as pd
import pytest
from apache_beam.io.components import adaptive_throttler
from apache_beam.metrics import Metrics
from apache_beam.ml.inference import base as beam_base
from hypothesis import given, settings
from hypothesis import strategies as st

from common import RUNNER, CollectElements, run
from runinference import KeyedModelHandler, ModelHandler, RunInference
from runinference.errors import (
    OptionError,
    RateLimitExceeded,
    ResultMismatchError,
    UnknownOptionError,
)
from runinference.remote.handler import Backoff, RemoteModelHandler

AT_ONCE = Backoff(initial_secs=0)
SECONDS = 30  # until a test gives up on threads that should have met


class Local(RemoteModelHandler):
    """Answers by a function of the batch and the arguments; notes the sleeps in place of sleeping."""

    def __init__(self, answer, **options):
        super().__init__(**options)
        self.answer = answer
        self.slept = []
        self._sleep = self.slept.append

    def create_client(self):
        return self.answer

    def request(self, batch, model, inference_args=None):
        return model(batch, inference_args)

    def ask(self, batch, **inference_args):
        return self.run_inference(batch, self.create_client(), inference_args or None)


def double(batch, args=None):
    return [2 * x for x in batch]


class Script:
    """Answers the first requests as written, an error being raised; and all others by doubling."""

    def __init__(self, *lines):
        self.lines = list(lines)
        self.tries = 0
        self._lock = threading.Lock()

    def __call__(self, batch, args=None):
        with self._lock:
            self.tries += 1
            line = self.lines.pop(0) if self.lines else None
        if isinstance(line, BaseException):
            raise line
        return line if line is not None else double(batch)


class Together:
    """Lets requests pass only when so many are there at once; counts how many were."""

    def __init__(self, n):
        self.barrier = threading.Barrier(n)
        self.now = self.most = 0
        self.sizes = []
        self._lock = threading.Lock()

    def __call__(self, batch, args=None):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.sizes.append(len(batch))
        self.barrier.wait(SECONDS)
        with self._lock:
            self.now -= 1
        return double(batch)


class StatusError(Exception):
    def __init__(self, status_code, **said):
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        vars(self).update(said)


# --- how a batch is sent


def test_a_batch_is_one_request_unless_asked_otherwise():
    asked = Script()
    assert Local(asked).ask(list(range(100))) == double(range(100))
    assert asked.tries == 1


def test_requests_run_together_and_answer_in_order():
    together = Together(16)
    handler = Local(together, max_request_size=8)
    assert handler.ask(list(range(128))) == double(range(128))
    assert together.most == 16
    assert set(together.sizes) == {8}


def test_no_more_requests_are_in_flight_than_allowed_all_threads_together():
    together = Together(3)
    handler = Local(together, max_request_size=2, max_concurrent_requests=3)
    single = Local(together, max_concurrent_requests=3)
    single._process_pool = handler._process_pool
    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(h.ask, list(range(14))) for h in (handler, single, single)]
        assert [f.result() for f in futures] == [double(range(14))] * 3
    assert together.most == 3


@pytest.mark.parametrize("size", [1, None], ids=["in the pool", "in the caller's thread"])
def test_a_request_takes_a_place_while_it_is_in_flight_and_only_then(size):
    def answer(batch, args):
        free.append(pool.places.acquire(blocking=False))
        if len(free) == 1:
            raise ConnectionError
        return double(batch)

    handler = Local(answer, max_request_size=size, max_concurrent_requests=1)
    pool = handler._process_pool.open(handler._outbox)
    free, free_in_pauses = [], []

    def pause(seconds):
        free_in_pauses.append(pool.places.acquire(blocking=False))
        pool.places.release()

    handler._sleep = pause
    assert handler.ask([1, 2]) == [2, 4]
    assert set(free) == {False}
    assert free_in_pauses == [True]


def test_copies_of_a_handler_find_the_same_threads():
    handler = Copied(max_request_size=1)
    pool = handler._process_pool.open(handler._outbox)
    twins = [
        pickle.loads(pickle.dumps(handler)),
        copy.deepcopy(handler),
        handler.with_no_batching(),
    ]
    for twin in twins:
        assert twin._process_pool.open(twin._outbox) is pool
    other = Copied(max_request_size=1)
    assert other._process_pool.open(other._outbox) is not pool


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(), max_size=60), st.integers(1, 9), st.integers(1, 5))
def test_whatever_the_sizes_each_example_has_its_own_answer(examples, size, most):
    sizes = []

    def answer(batch, args):
        sizes.append(len(batch))
        return double(batch)

    handler = Local(answer, max_request_size=size, max_concurrent_requests=most)
    assert handler.predict(examples) == double(examples)
    assert sum(sizes) == len(examples)
    assert max(sizes, default=0) <= size


@pytest.mark.parametrize(
    "batch",
    [
        np.arange(20.0).reshape(10, 2),
        pd.DataFrame({"a": range(10), "b": range(10)}),
        tuple(range(10)),
    ],
    ids=["array", "frame", "tuple"],
)
def test_batches_that_are_no_lists_are_cut_by_rows(batch):
    kinds = []

    def answer(part, args):
        kinds.append((type(part), len(part)))
        return [float(np.sum(np.asarray(row))) for row in np.asarray(part)]

    handler = Local(answer, max_request_size=4).with_no_batching()
    expected = [float(np.sum(row)) for row in np.asarray(batch)]
    assert handler.predict([batch]) == expected
    assert sorted(n for _, n in kinds) == [2, 4, 4]
    assert {kind for kind, _ in kinds} == {type(batch)}


def test_a_batch_that_is_a_mapping_is_one_request():
    handler = Local(lambda batch, args: double(batch["x"]), max_request_size=1).with_no_batching()
    assert handler.predict([{"x": [1, 2, 3]}]) == [2, 4, 6]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (2048, 2048)),
        ({"max_batch_size": 100}, (100, 100)),
        ({"min_batch_size": 10}, (10, None)),
        ({"max_concurrent_requests": 2}, (256, 256)),
        ({"max_request_size": 10_000}, (10_000, 10_000)),
        ({"max_request_size": None}, (None, None)),
    ],
)
def test_batches_are_large_enough_to_keep_all_requests_busy(options, sizes):
    asked = Local(double, **{"max_request_size": 8, **options}).batch_elements_kwargs()
    assert (asked.get("min_batch_size"), asked.get("max_batch_size")) == sizes


def test_all_options_for_batching_are_allowed():
    handler = Local(
        double,
        max_batch_weight=10,
        element_size_fn=len,
        batch_length_fn=len,
        max_batch_duration_secs=1.5,
        max_batch_bytes=1000,
    )
    assert handler.predict(["a", "bb" * 4, "c"]) == ["aa", "bb" * 8, "cc"]


# --- what the answers are


def test_answers_are_split_whatever_their_structure():
    def answer(batch, args):
        return {"label": np.array(batch) % 2, "score": [x / 10 for x in batch]}

    [first, second, third] = Local(answer, max_request_size=2).ask([1, 2, 3])
    assert first == {"label": 1, "score": 0.1}
    assert second == {"label": 0, "score": 0.2}
    assert third == {"label": 1, "score": 0.3}


def test_too_few_answers_are_an_error_and_no_reason_to_ask_again():
    asked = Script([2])
    with pytest.raises(ResultMismatchError, match="1 result for a batch of 3"):
        Local(asked).ask([1, 2, 3])
    assert asked.tries == 1


def test_an_answer_that_comes_lazily_is_tried_again_too():
    asked = Script()

    def lazily(batch, args):
        answer = asked(batch)
        yield answer[0]
        if asked.tries == 1:
            raise ConnectionResetError
        yield from answer[1:]

    assert Local(lazily).ask([1, 2]) == [2, 4]
    assert asked.tries == 2


# --- the arguments


def test_no_call_sees_what_another_made_of_the_arguments():
    seen = []
    failures = Script(ConnectionError())

    def answer(batch, args):
        seen.append(copy.deepcopy(args))
        args["stop"].append("END")
        args["nested"]["n"] += 1
        args["new"] = True
        return failures(batch)

    given_args = {"stop": [], "nested": {"n": 0}}
    Local(answer, max_request_size=1).ask(list(range(20)), **given_args)
    assert seen == [{"stop": [], "nested": {"n": 0}}] * 21
    assert given_args == {"stop": [], "nested": {"n": 0}}


def test_in_beam_a_call_sees_what_another_made_of_the_arguments():
    seen = []

    class InBeam(beam_base.RemoteModelHandler):
        def create_client(self):
            return None

        def request(self, batch, model, inference_args=None):
            seen.append(list(inference_args["stop"]))
            inference_args["stop"].append("END")
            return batch

    handler, args = InBeam("beam"), {"stop": []}
    for _ in range(3):
        handler.run_inference([1], None, args)
    assert seen == [[], ["END"], ["END", "END"]]


def test_arguments_that_cannot_be_copied_are_handed_on():
    lock = threading.Lock()
    handler = Local(lambda batch, args: [args["lock"]] * len(batch))
    assert handler.ask([1, 2], lock=lock) == [lock, lock]


def test_a_try_does_not_see_what_the_last_one_made_of_the_batch():
    failures = Script(ConnectionError())

    def emptying(batch, args):
        answer = [2 * batch.pop(0) for _ in range(len(batch))]
        failures(batch)
        return answer

    batch = [1, 2, 3]
    assert Local(emptying).ask(batch) == [2, 4, 6]
    assert batch == [1, 2, 3]


# --- retries


def test_a_request_is_tried_again_until_it_succeeds():
    asked = Script(ConnectionResetError(), StatusError(503), TimeoutError())
    handler = Local(asked, backoff=Backoff(jitter=0))
    assert handler.ask([1]) == [2]
    assert asked.tries == 4
    assert handler.slept == [0.5, 2, 8]


def test_after_all_retries_the_error_is_raised_as_it_is():
    errors = [ConnectionError(str(n)) for n in range(3)]
    asked = Script(*errors)
    with pytest.raises(ConnectionError) as raised:
        Local(asked, num_retries=2).ask([1])
    assert raised.value is errors[2]
    assert asked.tries == 3


def test_num_retries_means_what_it_means_in_beam(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda secs: None)
    asked = Script(*[ConnectionError() for _ in range(9)])

    class InBeam(beam_base.RemoteModelHandler):
        def create_client(self):
            return None

        def request(self, batch, model, inference_args=None):
            return asked(batch)

    with pytest.raises(ConnectionError):
        InBeam("beam", num_retries=2).run_inference([1], None)
    assert asked.tries == 3


def test_without_retries_the_first_error_is_raised_and_tenacity_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    asked = Script(ConnectionError())
    handler = Local(asked, num_retries=0)
    with pytest.raises(ConnectionError):
        handler.ask([1])
    assert handler.ask([1]) == [2]


def test_if_tenacity_is_missing_the_extra_is_named_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(ImportError, match=r'pip install "runinference\[remote\]"'):
        Local(double)


@pytest.mark.parametrize(
    "error", [TypeError("bug"), StatusError(400), ResultMismatchError("short")]
)
def test_an_error_that_another_try_does_not_mend_is_raised_at_once(error):
    asked = Script(error)
    with pytest.raises(type(error)):
        Local(asked).ask([1])
    assert asked.tries == 1


def test_the_filter_decides_what_is_tried_again():
    asked = Script(StatusError(400), KeyError())
    handler = Local(asked, retry_filter=lambda error: isinstance(error, StatusError))
    with pytest.raises(KeyError):
        handler.ask([1])
    assert asked.tries == 2


def test_what_is_no_exception_is_never_tried_again():
    asked = Script(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Local(asked, retry_filter=lambda error: True).ask([1])
    assert asked.tries == 1


def test_the_server_says_how_long_to_wait():
    handler = Local(
        Script(StatusError(429, retry_after=7), StatusError(429, retry_after="11")),
        backoff=Backoff(jitter=0),
    )
    assert handler.ask([1]) == [2]
    assert handler.slept == [7, 11]


def test_a_server_that_asks_for_too_long_a_pause_is_not_asked_again():
    asked = Script(StatusError(429, retry_after=86_400))
    handler = Local(asked)
    with pytest.raises(StatusError, match="429"):
        handler.ask([1])
    assert asked.tries == 1
    assert handler.slept == []


def test_each_retry_and_the_end_are_logged(caplog):
    handler = Local(
        Script(StatusError(503), StatusError(503)),
        namespace="my_model",
        num_retries=1,
        backoff=Backoff(jitter=0),
    )
    with caplog.at_level(logging.WARNING, "my_model"), pytest.raises(StatusError):
        handler.ask([1, 2])
    assert caplog.messages == [
        "A request failed; retry 1 of 1 in 0.50 s: StatusError('status 503')",
        "A request of 2 examples failed for good: StatusError('status 503')",
    ]


# --- several requests, of which some fail


def test_one_failing_request_does_not_keep_the_others_from_being_answered():
    answered = []
    failing = threading.Event()

    def answer(batch, args):
        if batch == [0]:
            failing.wait(SECONDS)
            raise StatusError(400)
        answered.append(batch[0])
        if len(answered) == 3:
            failing.set()
        return double(batch)

    with pytest.raises(StatusError, match="400"):
        Local(answer, max_request_size=1, max_concurrent_requests=4).ask([0, 1, 2, 3])
    assert sorted(answered) == [1, 2, 3]


def test_of_several_errors_the_first_of_the_batch_is_raised():
    barrier = threading.Barrier(3)

    def answer(batch, args):
        barrier.wait(SECONDS)
        raise ValueError(f"example {batch[0]}")

    for _ in range(20):
        with pytest.raises(ValueError, match="example 0"):
            Local(answer, max_request_size=1, num_retries=0).ask([0, 1, 2])


def test_after_a_failure_what_was_not_sent_yet_is_not_sent():
    asked = Script(StatusError(400))
    with pytest.raises(StatusError):
        Local(asked, max_request_size=1, max_concurrent_requests=1).ask(list(range(1000)))
    assert asked.tries < 1000


def test_after_a_failure_the_next_batch_is_answered():
    handler = Local(Script(StatusError(400)), max_request_size=1, max_concurrent_requests=2)
    with pytest.raises(StatusError):
        handler.ask([1, 2, 3, 4])
    assert handler.ask([1, 2, 3, 4]) == [2, 4, 6, 8]


def test_many_threads_and_failures_lose_no_answer_and_mix_none_up():
    def flaky(batch, args):
        if random.random() < 0.3:
            raise ConnectionError
        return double(batch)

    handler = Local(flaky, max_request_size=3, max_concurrent_requests=5, num_retries=50)
    handler.throttler.throttle = lambda: None
    batches = [list(range(start, start + 40)) for start in range(0, 1200, 40)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(handler.ask, batches)) == [double(batch) for batch in batches]


# --- holding back


class Limiter:
    def __init__(self, *verdicts):
        self.verdicts = list(verdicts)
        self.hits = []

    def allow(self, *, hits_added):
        self.hits.append(hits_added)
        return self.verdicts.pop(0) if self.verdicts else True


def test_a_refused_request_is_tried_again_whatever_the_filter_says():
    limiter = Limiter(False, False)
    asked = Script()
    handler = Local(asked, rate_limiter=limiter, retry_filter=lambda error: False)
    assert handler.ask([1, 2, 3]) == [2, 4, 6]
    assert limiter.hits == [3, 3, 3]
    assert asked.tries == 1


def test_a_limit_that_stays_used_up_is_an_error_that_says_what_to_do():
    handler = Local(double, rate_limiter=Limiter(*[False] * 9), num_retries=2)
    with pytest.raises(RateLimitExceeded, match="raise its limit, lower max_concurrent_requests"):
        handler.ask([1])


def test_each_request_is_counted_by_its_examples():
    limiter = Limiter()
    Local(double, rate_limiter=limiter, max_request_size=4).ask(list(range(10)))
    assert sorted(limiter.hits) == [2, 4, 4]


def test_all_copies_in_a_process_share_one_limiter():
    handler = Copied(rate_limiter=Limiter())
    twins = [pickle.loads(pickle.dumps(handler)) for _ in range(2)]
    for twin in twins:
        assert twin.run_inference([1], None) == [2]
    limiters = {id(twin._process_pool.open(twin._outbox)._rate_limiter) for twin in twins}
    assert len(limiters) == 1


class Copied(RemoteModelHandler):
    def create_client(self):
        return None

    def request(self, batch, model, inference_args=None):
        return double(batch)


class FakeTime:
    def __init__(self):
        self.now = 1e9
        self.slept = []

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """Time that only sleeping moves on, for Beam's throttler and for us."""
    fake = FakeTime()
    monkeypatch.setattr(adaptive_throttler, "time", fake)
    monkeypatch.setattr("runinference.remote.handler.time", fake)
    return fake


def likely(handler):
    """Lets chance hold back whatever is more likely than not to be."""
    handler.throttler._random = SimpleNamespace(uniform=lambda low, high: 0.49)
    return handler


def test_after_failures_new_requests_are_held_back(clock):
    asked = Script(StatusError(503), StatusError(503))
    handler = likely(Local(asked, num_retries=0, throttle_delay_secs=7))
    for _ in range(2):
        with pytest.raises(StatusError):
            handler.ask([1])
    assert clock.slept == []
    assert handler.ask([1]) == [2]
    assert clock.slept == [7]


def test_a_single_failure_holds_nobody_back_as_it_does_in_beam(clock):
    handler = likely(Local(Script(StatusError(503)), num_retries=0))
    with pytest.raises(StatusError):
        handler.ask([1])
    assert handler.ask([1]) == [2]
    assert clock.slept == []

    in_beam = adaptive_throttler.AdaptiveThrottler(1000, 1000, 2)
    in_beam._random = SimpleNamespace(uniform=lambda low, high: 0.49)
    assert [in_beam.throttle_request(1e12) for _ in range(2)] == [False, True]


def test_a_retry_is_not_held_back_since_it_waits_already(clock):
    handler = likely(Local(Script(*[StatusError(503) for _ in range(5)])))
    assert handler.ask([1]) == [2]
    assert clock.slept == []


def test_what_the_server_refuses_as_it_is_holds_nobody_back(clock):
    handler = likely(Local(Script(*[StatusError(400) for _ in range(20)])))
    for _ in range(20):
        with pytest.raises(StatusError):
            handler.ask([1])
    assert clock.slept == []


def test_requests_on_their_way_hold_nobody_back_as_they_do_in_beam(clock):
    together = Together(16)
    assert likely(Local(together, max_request_size=1)).ask(list(range(16))) == double(range(16))
    assert clock.slept == []

    in_beam = adaptive_throttler.AdaptiveThrottler(1000, 1000, 2)
    in_beam._random = SimpleNamespace(uniform=lambda low, high: 0.49)
    assert [in_beam.throttle_request(1e12) for _ in range(3)] == [False, True, True]


# --- what a handler is


def test_the_constructor_takes_beams_arguments_in_beams_order():
    def never(error):
        return False

    handler = Copied("space", 3, 9, never, window_ms=10, bucket_ms=5, overload_ratio=1.5)
    ours, in_beam = (
        list(inspect.signature(kind.__init__).parameters)
        for kind in (RemoteModelHandler, beam_base.RemoteModelHandler)
    )
    assert ours[: len(in_beam)] == in_beam
    assert handler.num_retries == 3
    assert handler.retry_filter is never
    assert handler.logger.name == "space"
    assert handler.throttler.throttle_delay_secs == 9


def test_a_handler_needs_no_namespace_as_it_does_in_beam():
    assert Copied().predict([1]) == [2]

    class InBeam(beam_base.RemoteModelHandler):
        create_client = request = None

    with pytest.raises(ValueError, match="namespace must be non-empty"):
        InBeam()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_retries": -1}, "num_retries must be at least 0, and is -1"),
        ({"max_request_size": 0}, "max_request_size must be at least 1"),
        ({"max_concurrent_requests": 0}, "max_concurrent_requests must be at least 1"),
        ({"window_ms": 10, "bucket_ms": 20}, r"bucket_ms \(20\) must be .* at most window_ms"),
        ({"throttle_delay_secs": 0.5}, "whole seconds"),
        ({"large_model": True}, "leave large_model and model_copies out"),
        ({"model_copies": 2}, "leave large_model and model_copies out"),
        ({"min_batch_size": 9, "max_batch_size": 3}, "min_batch_size"),
    ],
)
def test_contradictions_are_told_at_once(options, message):
    with pytest.raises(OptionError, match=message):
        Copied(**options)


def test_a_misspelt_option_is_told_with_the_nearest():
    with pytest.raises(UnknownOptionError, match="Did you mean 'num_retries'"):
        Copied(num_retry=3)
    with pytest.raises(UnknownOptionError, match="Did you mean 'max_request_size'"):
        Local(double, max_requests_size=3)


@pytest.mark.parametrize(
    ("method", "instead"),
    [("load_model", "Implement create_client"), ("run_inference", "Implement request")],
)
def test_what_must_not_be_overridden_is_told_when_the_class_is_made(method, instead):
    with pytest.raises(TypeError, match=instead):
        type("Own", (RemoteModelHandler,), {method: lambda self: None})


def test_what_must_be_implemented_is_told():
    with pytest.raises(TypeError, match="request"):
        type("Own", (RemoteModelHandler,), {"create_client": lambda self: None})()


def test_a_subclass_need_not_call_the_constructor_of_its_base():
    class Silent(Copied):
        def __init__(self):
            self.max_request_size = 2

    assert Silent().predict([1, 2, 3]) == [2, 4, 6]
    assert pickle.loads(pickle.dumps(Copied())).predict([1]) == [2]


def test_a_handler_that_was_used_can_be_pickled_and_is_small():
    handler = Copied(max_request_size=1)
    assert handler.predict(range(50)) == double(range(50))
    pickled = pickle.dumps(handler)
    assert len(pickled) < 10_000
    assert pickle.loads(pickled).predict([1, 2]) == [2, 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_gets_threads_of_its_own():
    program = """
import os, signal
from runinference.remote.handler import RemoteModelHandler

class Copied(RemoteModelHandler):
    def create_client(self):
        return None
    def request(self, batch, model, inference_args=None):
        return list(batch)

handler = Copied(max_request_size=1, max_concurrent_requests=1)
assert handler.predict([1, 2]) == [1, 2]
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(handler.predict([1, 2]) != [1, 2])
raise SystemExit(os.waitpid(child, 0)[1])
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


# --- with a real server


class Endpoint(ThreadingHTTPServer):
    """Doubles the numbers it is sent; its first answers may be written: what to do, and headers."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), Answer)
        self.script = list(script)
        self.asked = []
        self.barrier = None
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(rows)
            act, headers = server.script.pop(0) if server.script else (200, {})
        if server.barrier:
            server.barrier.wait(SECONDS)
        if act == "drop":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        body = b'[{"half": ' if act == "garbage" else json.dumps(double(rows)).encode()
        self.send_response(200 if act == "garbage" else act)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def serving(*script):
    with Endpoint(*script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class OverHttpx(RemoteModelHandler):
    def __init__(self, url, **options):
        super().__init__(**{"backoff": AT_ONCE, **options})
        self.url = url

    def create_client(self):
        return httpx.Client(timeout=SECONDS, limits=httpx.Limits(max_connections=None))

    def request(self, batch, model, inference_args=None):
        return model.post(self.url, json=list(batch)).raise_for_status().json()


class OverUrllib(OverHttpx):
    def create_client(self):
        return None

    def request(self, batch, model, inference_args=None):
        request = urllib.request.Request(self.url, json.dumps(batch).encode())
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return json.load(response)


CLIENTS = pytest.mark.parametrize("client", [OverHttpx, OverUrllib])


@CLIENTS
@pytest.mark.parametrize(
    "script",
    [
        [(500, {}), (500, {})],
        [(503, {"Retry-After": "0"}), (429, {"Retry-After": "Fri, 07 Aug 2026 08:00:00 GMT"})],
        [("drop", {}), ("drop", {})],
        [("garbage", {}), ("garbage", {})],
        [("drop", {}), ("garbage", {}), (502, {}), (429, {"Retry-After": "whenever"})],
    ],
    ids=["500", "retry-after", "dropped", "garbage", "all of it"],
)
def test_a_server_in_trouble_is_asked_until_it_answers(client, script):
    with serving(*script) as server:
        handler = client(server.url)
        assert handler.predict([1]) == [2]
        assert len(server.asked) == len(script) + 1


@CLIENTS
def test_retry_after_of_a_real_server_is_honoured(client):
    with serving((429, {"Retry-After": "3"})) as server:
        handler = client(server.url, backoff=Backoff(jitter=0))
        slept = []
        handler._sleep = slept.append
        assert handler.predict([1, 2]) == [2, 4]
    assert slept == [3]


@CLIENTS
def test_a_server_that_refuses_is_asked_once(client):
    with serving((422, {})) as server:
        with pytest.raises((httpx.HTTPStatusError, urllib.error.HTTPError), match="422"):
            client(server.url).predict([1])
        assert len(server.asked) == 1


@CLIENTS
def test_a_server_that_is_not_there_is_told(client):
    with serving() as server:
        url = server.url
    with pytest.raises((httpx.ConnectError, urllib.error.URLError)):
        client(url, num_retries=1).predict([1])


def test_a_real_server_gets_sixteen_requests_at_a_time():
    with serving() as server:
        server.barrier = threading.Barrier(16)
        assert OverHttpx(server.url, max_request_size=8).predict(range(256)) == double(range(256))
        assert {len(rows) for rows in server.asked} == {8}
        assert len(server.asked) == 32


# --- in pipelines


TRANSFORMS = pytest.mark.parametrize(
    "transform", [RunInference, beam_base.RunInference], ids=["ours", "beam's"]
)


@TRANSFORMS
def test_requests_run_together_in_a_pipeline(transform):
    with serving() as server:
        server.barrier = threading.Barrier(4)
        handler = OverHttpx(server.url, max_request_size=5, max_concurrent_requests=4)
        assert sorted(run(range(40), transform(handler))) == double(range(40))
        assert {len(rows) for rows in server.asked} == {5}


@TRANSFORMS
def test_a_pipeline_survives_a_server_in_trouble(transform):
    script = [(503, {}), ("drop", {}), ("garbage", {}), (500, {})]
    with serving(*script) as server:
        handler = OverHttpx(
            server.url, max_request_size=2, max_concurrent_requests=2, throttle_delay_secs=1
        )
        assert sorted(run(range(20), transform(handler))) == double(range(20))


def test_keys_go_around_a_remote_model():
    with serving() as server:
        handler = KeyedModelHandler(OverHttpx(server.url, max_request_size=3))
        results = run([(str(n), n) for n in range(10)], RunInference(handler))
        assert sorted(results) == sorted((str(n), 2 * n) for n in range(10))


class OneByOne(beam_base.RemoteModelHandler):
    alone = Together(1)

    def create_client(self):
        return None

    def request(self, batch, model, inference_args=None):
        return self.alone(batch)

    def batch_elements_kwargs(self):
        return {"min_batch_size": 2, "max_batch_size": 2}


def test_in_beam_the_requests_of_a_bundle_run_one_after_another():
    results = run(range(20), beam_base.RunInference(OneByOne("beam")))
    assert sorted(results) == double(range(20))
    assert OneByOne.alone.most == 1
    assert len(OneByOne.alone.sizes) == 10


class Counting(RemoteModelHandler):
    def create_client(self):
        return Metrics.counter("counting", "requests")

    def request(self, batch, model, inference_args=None):
        model.inc()
        return double(batch)


def counted(namespace, name, handler, n):
    pipeline = beam.Pipeline(runner=RUNNER)
    _ = pipeline | beam.Create(range(n)) | RunInference(handler)
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(namespace))
    return {found.key.metric.name: found.committed for found in counters["counters"]}.get(name)


def test_metrics_of_a_request_count_for_the_step_whichever_thread_sends_it():
    assert counted("counting", "requests", Counting(max_request_size=1), 100) == 100


class Overloaded(RemoteModelHandler):
    """Has just seen many requests fail."""

    def create_client(self):
        now = time.time() * 1000
        for _ in range(1000):
            self.throttler.failed_request(now)

    def request(self, batch, model, inference_args=None):
        return double(batch)


def test_the_seconds_held_back_are_counted_under_beams_name():
    handler = Overloaded("held_back", throttle_delay_secs=1, max_request_size=5)
    seconds = counted("held_back", "cumulativeThrottlingSeconds", handler, 10)
    assert seconds is not None
    assert seconds >= 1


def test_an_error_of_the_server_ends_the_pipeline_with_its_own_name():
    with serving((422, {})) as server, pytest.raises(Exception, match="422 Unprocessable"):
        run([1], RunInference(OverHttpx(server.url)))


def test_what_a_broken_connection_raises_is_worth_another_try():
    asked = Script(http.client.RemoteDisconnected("gone"), http.client.IncompleteRead(b""))
    assert Local(asked).ask([1]) == [2]


class Sorting(ModelHandler):
    """Asks another handler about a sorted batch, and puts its answers into the order of the batch."""

    def __init__(self, inside, **options):
        super().__init__(**options)
        self.inside = inside

    def load_model(self):
        return self.inside.load_model()

    def run_inference(self, batch, model, inference_args=None):
        unique = sorted(set(batch))
        answers = self.inside.run_inference(unique, model, inference_args)
        found = dict(zip(unique, answers, strict=True))
        return [(word, found[word]) for word in batch]


class Shouting(RemoteModelHandler):
    def create_client(self):
        return str.upper

    def request(self, batch, model, inference_args=None):
        if "bad" in batch:
            raise TypeError("a bad word")
        return [model(word) for word in batch]


def test_sizes_and_bytes_are_measured_of_requests_that_went_well_where_others_failed():
    words = [f"{n:04}" for n in range(9)]
    pipeline = beam.Pipeline(runner=RUNNER)
    handler = Shouting(num_retries=0, max_request_size=2, min_batch_size=10)
    transform = RunInference(handler).with_exception_handling()
    _ = pipeline | beam.Create([*words, "bad"], reshuffle=False) | transform
    result = pipeline.run()
    result.wait_until_finish()

    def total(name):
        [found] = result.metrics().query(beam.metrics.MetricsFilter().with_name(name))[
            "distributions"
        ]
        return found.committed.sum

    assert total("inference_request_batch_size") == len(words)
    assert total("inference_request_batch_byte_size") == handler.get_num_bytes(words)


def test_what_became_of_parts_is_not_believed_where_another_handler_cut_the_batch_anew():
    handler = Sorting(Shouting(max_request_size=1, num_retries=0), min_batch_size=6)
    words = ["z", "bad", "c", "a", "a", "y"]
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        elements = pipeline | beam.Create(words, reshuffle=False)
        results, letters = elements | RunInference(handler).with_exception_handling()
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    assert CollectElements.take(good) == [(word, word.upper()) for word in words if word != "bad"]
    assert [word for word, _ in CollectElements.take(bad)] == ["bad"]
