"""Exactly what fails is set aside, for as few calls as that takes."""

from __future__ import annotations

import math

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
    """Doubles numbers; fails on the bad ones, and counts."""

    def __init__(self, bad=(), error=ValueError):
        self.bad, self.error, self.calls = set(bad), error, []

    def __call__(self, batch):
        self.calls.append(len(batch))
        for element in batch:
            if element in self.bad:
                raise self.error(f"bad {element}")
        return [2 * element for element in batch]


def aside(**options):
    pauses = []
    return DeadLetterPolicy(options.pop("caught", Exception), sleep=pauses.append), pauses


@given(st.integers(1, 70), st.sets(st.integers(0, 69)))
def test_exactly_the_bad_elements_fail(size, bad):
    outcomes = aside()[0].attempt(Call(bad), list(range(size)))
    for element, outcome in enumerate(outcomes):
        if element in bad:
            assert str(outcome.error) == f"bad {element}"
        else:
            assert outcome == 2 * element


def test_one_bad_element_costs_about_two_calls_a_halving():
    call = Call({17})
    aside()[0].attempt(call, list(range(64)))
    assert len(call.calls) <= 2 * math.log2(64) + 1


def test_an_error_that_may_pass_is_tried_again_on_the_whole_batch():
    class Flaky(Call):
        def __call__(self, batch):
            self.calls.append(len(batch))
            if len(self.calls) < 3:
                raise ConnectionResetError("try again")
            return list(batch)

    call, (errors, pauses) = Flaky(), aside()
    assert errors.attempt(call, [1, 2, 3]) == [1, 2, 3]
    assert call.calls == [3, 3, 3]
    assert len(pauses) == 2
    assert pauses[0] < pauses[1] * 3


def test_an_endpoint_that_is_down_costs_few_calls_and_sets_all_aside():
    call, (errors, pauses) = Call(range(1000), ConnectionError), aside()
    outcomes = errors.attempt(call, list(range(1000)))
    assert all(isinstance(outcome, Failure) for outcome in outcomes)
    assert len(outcomes) == 1000
    assert len(call.calls) <= 3 * 4 * (1000).bit_length() + RETRIES + 1
    assert len(pauses) == RETRIES


def test_one_element_on_which_the_model_hangs_is_found():
    outcomes = aside()[0].attempt(Call({5}, InferenceTimeoutError), list(range(100)))
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Failure)] == [5]


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError, InferenceTimeoutError])
def test_many_elements_that_are_always_refused_take_no_good_one_with_them(error):
    bad = set(range(0, 64, 5))
    outcomes = aside()[0].attempt(Call(bad, error), list(range(64)))
    assert {n for n, outcome in enumerate(outcomes) if isinstance(outcome, Failure)} == bad


def test_a_model_that_always_hangs_costs_few_timeouts():
    call = Call(range(1000), InferenceTimeoutError)
    outcomes = aside()[0].attempt(call, list(range(1000)))
    assert len(outcomes) == 1000
    assert len(call.calls) <= 100


def test_a_model_that_cannot_be_loaded_is_not_asked_again_for_each_half():
    def call(batch):
        calls.append(len(batch))
        raise ModelUnavailableError("no model") from FileNotFoundError("gone")

    calls = []
    outcomes = aside()[0].attempt(call, [1, 2, 3])
    assert calls == [3]
    assert [type(outcome.error) for outcome in outcomes] == [FileNotFoundError] * 3


def test_only_the_errors_named_are_set_aside():
    with pytest.raises(ZeroDivisionError):
        aside(caught=ValueError)[0].attempt(Call({1}, ZeroDivisionError), [1, 2])
    outcomes = aside(caught=(KeyError, ValueError))[0].attempt(Call({1}), [1, 2])
    assert isinstance(outcomes[0], Failure)


def test_errors_raise_where_nothing_sets_them_aside():
    with pytest.raises(ValueError, match="bad 1"):
        FailFastPolicy().attempt(Call({1}), [0, 1])


def test_a_report_has_type_message_and_traceback():
    [failure] = aside()[0].attempt(Call({1}), [1])
    kind, message, lines = failure.report()
    assert kind is ValueError
    assert message == "ValueError('bad 1')"
    assert any("in __call__" in line for line in lines)


def test_a_report_tells_of_its_own_error_alone():
    """The errors of the batches that it was in are no cause of it."""
    outcomes = aside()[0].attempt(Call({5, 6}), list(range(64)))
    for bad in (5, 6):
        _, message, lines = outcomes[bad].report()
        assert message == f"ValueError('bad {bad}')"
        told = "".join(lines)
        assert told.count("Traceback") == 1
        assert told.count("ValueError") == 1


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionError(), True),
        (TimeoutError(), True),
        (InferenceTimeoutError("ours"), False),
        (ValueError(), False),
    ],
)
def test_what_may_pass_is_told_by_its_kind(error, transient):
    assert is_transient(error) is transient


def test_what_may_pass_is_told_by_a_status_code():
    error = RuntimeError("busy")
    error.status_code = 503
    assert is_transient(error)
    error.status_code = 400
    assert not is_transient(error)


def test_out_of_memory_halves_the_batch_and_loses_nothing():
    def call(batch):
        if len(batch) > 10:
            raise MemoryError("too much")
        return [2 * n for n in batch]

    told = []
    assert list(
        halved_on_out_of_memory(call, range(33), lambda batch: told.append(len(batch)))
    ) == [2 * n for n in range(33)]
    assert told == [33, 17, 16]


def test_one_element_that_is_too_large_is_an_error():
    def call(batch):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(halved_on_out_of_memory(call, [1, 2], lambda batch: None))


class InParts(Call):
    """Sends a batch in parts of two; once one has failed, the rest is not sent."""

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
def test_parts_of_a_batch_that_succeeded_are_not_sent_again(bad, error):
    call, (errors, pauses) = InParts(bad, error), aside()
    outcomes = errors.attempt(call, list(range(10)))
    for element, outcome in enumerate(outcomes):
        assert isinstance(outcome, Failure) if element in bad else outcome == 2 * element
    assert pauses == []  # who sends in parts tries each again itself
    assert len(call.calls) <= 5 + 3 * len(bad)


def test_where_all_that_was_sent_found_the_model_unavailable_nothing_more_is_sent():
    call = InParts(bad={0, 1}, error=ModelUnavailableError)
    errors, _ = aside()
    outcomes = errors.attempt(call, list(range(10)))
    assert [type(outcome) for outcome in outcomes] == [Failure] * 10
    assert len(call.calls) == 1


def test_what_succeeded_before_the_model_was_unavailable_is_kept():
    call = InParts(bad={4}, error=ModelUnavailableError)
    errors, _ = aside()
    outcomes = errors.attempt(call, list(range(10)))
    assert outcomes[:4] == [0, 2, 4, 6]
    assert outcomes[6:] == [12, 14, 16, 18]
    assert [type(outcome) for outcome in outcomes[4:6]] == [Failure] * 2


class SendsInParts(RunsInParts, ModelHandler):
    """Runs a function on parts of two elements."""

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

    outcomes = aside()[0].attempt(
        lambda batch: run_batch_in_parts(handler, batch, handler.load_model(), None),
        [(f"k{n}", n) for n in range(6)],
    )
    assert [o for o in outcomes if not isinstance(o, Failure)] == [
        (f"k{n}", 2 * n) for n in range(6) if n != 3
    ]


def test_an_error_that_may_pass_is_tried_again_also_in_a_part_of_a_batch_that_failed_for_another_reason():
    """It hides behind the bad element: the batch is divided before it is met."""
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


def test_beside_an_element_that_is_always_refused_one_that_is_refused_once_gets_its_result():
    """The batch is tried again in vain for the one, and the other may not have been sent by then."""
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
