"""Exactly the failing elements become dead letters, with as few model calls as possible."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runinference import KeyedModelHandler, ModelHandler
from runinference.errors import (
    InferenceTimeoutError,
    ModelUnavailableError,
    PartialBatchError,
    PartialResult,
)
from runinference.handlers.call import RunsInParts, run_batch_in_parts
from runinference.handlers.error_policy import (
    RETRIES,
    DeadLetterPolicy,
    FailFastPolicy,
    Failure,
    halved_on_out_of_memory,
    is_transient,
)


class Call:
    """Doubles numbers, fails on bad ones, and records the size of each call."""

    def __init__(self, bad=(), error=ValueError):
        self.bad, self.error, self.calls = set(bad), error, []

    def __call__(self, batch):
        self.calls.append(len(batch))
        for element in batch:
            if element in self.bad:
                raise self.error(f"bad {element}")
        return [2 * element for element in batch]


def policy(**options):
    pauses = []
    return DeadLetterPolicy(options.pop("caught", Exception), sleep=pauses.append), pauses


@given(st.integers(1, 70), st.sets(st.integers(0, 69)))
def test_exactly_the_bad_elements_fail(size, bad):
    outcomes = policy()[0].attempt(Call(bad), list(range(size)))
    for element, outcome in enumerate(outcomes):
        if element in bad:
            assert str(outcome.error) == f"bad {element}"
        else:
            assert outcome == 2 * element


def test_one_bad_element_costs_about_two_calls_per_bisection():
    call = Call({17})
    policy()[0].attempt(call, list(range(64)))
    assert len(call.calls) <= 2 * math.log2(64) + 1


def test_a_transient_error_is_retried_on_the_whole_batch():
    class Flaky(Call):
        def __call__(self, batch):
            self.calls.append(len(batch))
            if len(self.calls) < 3:
                raise ConnectionResetError("try again")
            return list(batch)

    call, (errors, pauses) = Flaky(), policy()
    assert errors.attempt(call, [1, 2, 3]) == [1, 2, 3]
    assert call.calls == [3, 3, 3]
    assert len(pauses) == 2
    assert pauses[0] < pauses[1] * 3


def test_an_endpoint_that_is_down_costs_few_calls_and_all_elements_fail():
    call, (errors, pauses) = Call(range(1000), ConnectionError), policy()
    outcomes = errors.attempt(call, list(range(1000)))
    assert all(isinstance(outcome, Failure) for outcome in outcomes)
    assert len(outcomes) == 1000
    assert len(call.calls) <= 3 * 4 * (1000).bit_length() + RETRIES + 1
    assert len(pauses) == RETRIES


def test_one_element_on_which_the_model_hangs_is_found():
    outcomes = policy()[0].attempt(Call({5}, InferenceTimeoutError), list(range(100)))
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Failure)] == [5]


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError, InferenceTimeoutError])
def test_many_elements_that_always_fail_do_not_fail_the_good_ones(error):
    bad = set(range(0, 64, 5))
    outcomes = policy()[0].attempt(Call(bad, error), list(range(64)))
    assert {n for n, outcome in enumerate(outcomes) if isinstance(outcome, Failure)} == bad


def test_a_model_that_always_hangs_costs_few_timeouts():
    call = Call(range(1000), InferenceTimeoutError)
    outcomes = policy()[0].attempt(call, list(range(1000)))
    assert len(outcomes) == 1000
    assert len(call.calls) <= 100


def test_a_model_that_cannot_be_loaded_is_not_retried_for_each_half():
    def call(batch):
        calls.append(len(batch))
        raise ModelUnavailableError("no model") from FileNotFoundError("gone")

    calls = []
    outcomes = policy()[0].attempt(call, [1, 2, 3])
    assert calls == [3]
    assert [type(outcome.error) for outcome in outcomes] == [FileNotFoundError] * 3


def test_only_the_given_exception_types_are_caught():
    with pytest.raises(ZeroDivisionError):
        policy(caught=ValueError)[0].attempt(Call({1}, ZeroDivisionError), [1, 2])
    outcomes = policy(caught=(KeyError, ValueError))[0].attempt(Call({1}), [1, 2])
    assert isinstance(outcomes[0], Failure)


def test_fail_fast_policy_raises_errors():
    with pytest.raises(ValueError, match="bad 1"):
        FailFastPolicy().attempt(Call({1}), [0, 1])


def test_a_report_has_type_message_and_traceback():
    [failure] = policy()[0].attempt(Call({1}), [1])
    kind, message, lines = failure.report()
    assert kind is ValueError
    assert message == "ValueError('bad 1')"
    assert any("in __call__" in line for line in lines)


def test_a_report_contains_only_its_own_error():
    """The errors of the batches that contained the element are not its cause."""
    outcomes = policy()[0].attempt(Call({5, 6}), list(range(64)))
    for bad in (5, 6):
        _, message, lines = outcomes[bad].report()
        assert message == f"ValueError('bad {bad}')"
        report = "".join(lines)
        assert report.count("Traceback") == 1
        assert report.count("ValueError") == 1


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionError(), True),
        (TimeoutError(), True),
        (InferenceTimeoutError("ours"), False),
        (ValueError(), False),
    ],
)
def test_transient_errors_are_recognized_by_type(error, transient):
    assert is_transient(error) is transient


def test_transient_errors_are_recognized_by_status_code():
    error = RuntimeError("busy")
    error.status_code = 503
    assert is_transient(error)
    error.status_code = 400
    assert not is_transient(error)


def test_out_of_memory_halves_the_batch_and_loses_no_element():
    def call(batch):
        if len(batch) > 10:
            raise MemoryError("too much")
        return [2 * n for n in batch]

    sizes = []
    results = halved_on_out_of_memory(call, range(33), lambda batch: sizes.append(len(batch)))
    assert results == [2 * n for n in range(33)]
    assert sizes == [33, 17, 16]


def test_one_element_that_does_not_fit_into_memory_raises():
    def call(batch):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        halved_on_out_of_memory(call, [1, 2], lambda batch: None)


class InParts(Call):
    """Sends a batch in parts of two elements, and stops after the first failure."""

    def __call__(self, batch):
        parts, failed = [], None
        for start in range(0, len(batch), 2):
            part = batch[start : start + 2]
            if failed is None:
                try:
                    parts.append(PartialResult(len(part), super().__call__(part), None))
                except Exception as error:
                    failed = error
                    parts.append(PartialResult(len(part), None, error))
            else:
                parts.append(PartialResult(len(part), None, None))
        if failed is not None:
            raise PartialBatchError(parts)
        return [result for part in parts for result in part.results]


@pytest.mark.parametrize("bad", [set(), {0}, {5}, {4, 5}, {0, 9}, set(range(10))])
@pytest.mark.parametrize("error", [ValueError, ConnectionError])
def test_parts_that_succeeded_are_not_sent_again(bad, error):
    call, (errors, pauses) = InParts(bad, error), policy()
    outcomes = errors.attempt(call, list(range(10)))
    for element, outcome in enumerate(outcomes):
        assert isinstance(outcome, Failure) if element in bad else outcome == 2 * element
    assert pauses == []  # the handler retries its parts itself
    assert len(call.calls) <= 5 + 3 * len(bad)


def test_nothing_more_is_sent_if_the_model_was_unavailable_for_every_part():
    call = InParts(bad={0, 1}, error=ModelUnavailableError)
    errors, _ = policy()
    outcomes = errors.attempt(call, list(range(10)))
    assert [type(outcome) for outcome in outcomes] == [Failure] * 10
    assert len(call.calls) == 1


def test_results_from_before_the_model_became_unavailable_are_kept():
    call = InParts(bad={4}, error=ModelUnavailableError)
    errors, _ = policy()
    outcomes = errors.attempt(call, list(range(10)))
    assert outcomes[:4] == [0, 2, 4, 6]
    assert outcomes[6:] == [12, 14, 16, 18]
    assert [type(outcome) for outcome in outcomes[4:6]] == [Failure] * 2


class SendsInParts(RunsInParts, ModelHandler):
    """Runs a function that sends parts of two elements."""

    def __init__(self, function):
        super().__init__(min_batch_size=10)
        self.function = function

    def load_model(self):
        return self.function

    def run_in_parts(self, batch, model, inference_args):
        try:
            return [PartialResult(len(batch), model(batch), None)]
        except PartialBatchError as error:
            return error.parts


def test_parts_keep_their_keys():
    handler = KeyedModelHandler(SendsInParts(InParts({3})))

    outcomes = policy()[0].attempt(
        lambda batch: run_batch_in_parts(handler, batch, handler.load_model(), None),
        [(f"k{n}", n) for n in range(6)],
    )
    assert [o for o in outcomes if not isinstance(o, Failure)] == [
        (f"k{n}", 2 * n) for n in range(6) if n != 3
    ]


def test_a_transient_error_is_retried_in_a_half_of_a_batch_that_failed_for_another_reason():
    """The bad element fails first, so the batch is bisected before the transient error occurs."""
    met = []

    def call(batch):
        for n in batch:
            if n == 0:
                raise ValueError("bad")
            if n == 3 and len(met) < 2:
                met.append(n)
                raise ConnectionError("nobody there")
        return batch

    outcomes = DeadLetterPolicy(Exception, sleep=lambda secs: None).attempt(call, [0, 1, 2, 3])
    assert outcomes[1:] == [1, 2, 3]
    assert isinstance(outcomes[0].error, ValueError)


def test_an_element_that_fails_once_gets_its_result_beside_one_that_always_fails():
    """Retries of the whole batch end at the first element, before the second one is reached."""
    met = []

    def call(batch):
        if 0 in batch:
            raise ConnectionError("never")
        if 1 in batch and not met:
            met.append(1)
            raise ConnectionError("not yet")
        return batch

    outcomes = DeadLetterPolicy(Exception, sleep=lambda secs: None).attempt(call, [0, 1, 2, 3])
    assert outcomes[1:] == [1, 2, 3]
    assert isinstance(outcomes[0], Failure)


class _ReprError(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")


class _StrError(Exception):
    def __str__(self):
        raise RuntimeError("no str")


class _PropertyError(Exception):
    @property
    def response(self):
        raise RuntimeError("no response")


class _NotHashable(type):
    def __hash__(cls):
        raise TypeError("no hash")


class _NotHashableError(Exception, metaclass=_NotHashable):
    pass


class _Text(str):
    def __len__(self):
        raise RuntimeError("no length")


class _TextError(Exception):
    def __repr__(self):
        return _Text("_TextError")


def _made_at_run_time():
    return type("MadeAtRunTime", (LookupError,), {"__module__": "no_such_module"})("text")


@pytest.mark.parametrize(
    ("make", "kind", "part"),
    [
        (_made_at_run_time, LookupError, "MadeAtRunTime"),
        (_ReprError, _ReprError, "its repr() raises RuntimeError"),
        (_StrError, _StrError, "_StrError"),
        (_PropertyError, _PropertyError, "_PropertyError"),
        (lambda: ValueError("x" * 10_000_000), ValueError, "xxx"),
        (lambda: type("Local", (_ReprError,), {})(), _ReprError, "Local"),
        (lambda: ValueError("half a pair: \ud83d"), ValueError, r"half a pair: \ud83d"),
        (_NotHashableError, _NotHashableError, "_NotHashableError"),
        (_TextError, _TextError, "_TextError"),
    ],
    ids=[
        "unpicklable class",
        "repr raises",
        "str raises",
        "property raises",
        "huge",
        "both",
        "a lone surrogate",
        "class without hash",
        "repr is no plain text",
    ],
)
def test_a_report_of_any_exception_is_bounded_and_can_be_pickled(make, kind, part):
    def call(batch):
        raise make()

    failures = policy()[0].attempt(call, [1, 2])
    for failure in failures:
        found, message, lines = pickle.loads(pickle.dumps(failure.report()))
        assert found is kind
        assert part in message
        assert len(message) + sum(map(len, lines)) < 50_000
        assert "".join([message, *lines]).encode()


def test_the_callers_exceptions_are_left_as_they_are():
    cause = KeyError("cause")
    error = ValueError("bad")
    error.__cause__ = cause

    def load(batch):
        raise ModelUnavailableError("not loaded") from error

    def send(batch):
        raise PartialBatchError([PartialResult(1, [1], None), PartialResult(1, None, error)])

    for call in (load, send):
        with pytest.raises(ValueError, match="bad"):
            FailFastPolicy().attempt(call, [1, 2])
        assert (error.__cause__, error.__context__) == (cause, None)
        assert vars(error) == {}


def test_an_error_of_any_part_that_is_not_caught_is_raised():
    def call(batch):
        raise PartialBatchError(
            [PartialResult(1, None, ValueError("a")), PartialResult(1, None, KeyError("b"))]
        )

    with pytest.raises(KeyError):
        policy(caught=ValueError)[0].attempt(call, [1, 2])
