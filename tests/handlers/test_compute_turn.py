"""Calls that overlap compute one at a time, in order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from runinference import KeyedModelHandler, ModelHandler
from runinference.handlers.compute_turn import (
    CallOverlap,
    CancelledTurnError,
    ComputeTurn,
    compute_turn,
    get_call_overlap,
    get_waited_ns,
    run_in_turn,
)


class Handler(ModelHandler):
    def __init__(self, uses_turn=True):
        super().__init__()
        self.uses_turn = uses_turn

    def call_overlap(self):
        return CallOverlap(uses_turn=self.uses_turn)


def turns(n):
    found = [ComputeTurn()]
    while len(found) < n:
        found.append(ComputeTurn(found[-1]))
    return found


def test_calls_compute_in_order_even_if_a_later_one_collates_first():
    computed, second_is_ready = [], threading.Event()
    first, second = turns(2)

    def call_first():
        second_is_ready.wait()
        with compute_turn():
            computed.append(1)

    def call_second():
        second_is_ready.set()
        with compute_turn():
            computed.append(2)

    with ThreadPoolExecutor(2) as threads:
        later = threads.submit(run_in_turn, second, Handler(), call_second)
        threads.submit(run_in_turn, first, Handler(), call_first).result()
        later.result()
    assert computed == [1, 2]


def test_a_call_collates_but_does_not_compute_while_another_one_computes():
    first, second = turns(2)
    has_collated, may_compute = threading.Event(), threading.Event()

    def call_first():
        with compute_turn():
            has_collated.wait()
            assert not may_compute.is_set()

    def call_second():
        has_collated.set()
        with compute_turn():
            may_compute.set()

    with ThreadPoolExecutor(2) as threads:
        later = threads.submit(run_in_turn, second, Handler(), call_second)
        threads.submit(run_in_turn, first, Handler(), call_first).result()
        later.result()


def test_a_handler_that_does_not_use_turns_runs_entirely_in_its_turn():
    first, second = turns(2)
    events, second_began = [], threading.Event()

    def call(name):
        events.append(f"{name} begins")
        events.append(f"{name} ends")

    def start_second():
        second_began.set()
        run_in_turn(second, Handler(False), lambda: call("second"))

    with ThreadPoolExecutor(1) as threads:
        later = threads.submit(start_second)
        second_began.wait()
        run_in_turn(first, Handler(False), lambda: call("first"))
        later.result()
    assert events == ["first begins", "first ends", "second begins", "second ends"]


@pytest.mark.parametrize("uses_turn", [True, False])
def test_a_call_that_fails_before_it_computes_lets_the_next_one_compute(uses_turn):
    first, second = turns(2)

    def fail():
        raise ValueError("cannot collate")

    with pytest.raises(ValueError, match="cannot collate"):
        run_in_turn(first, Handler(uses_turn), fail)
    assert run_in_turn(second, Handler(uses_turn), lambda: "result") == "result"


def test_calls_that_wait_for_one_that_hangs_can_be_cancelled():
    hanging, *waiting = turns(3)
    may_end = threading.Event()

    def hang():
        with compute_turn():
            may_end.wait()
        return "late"

    with ThreadPoolExecutor(3) as threads:
        late = threads.submit(run_in_turn, hanging, Handler(), hang)
        calls = [threads.submit(run_in_turn, turn, Handler(False), int) for turn in waiting]
        for turn in waiting:
            turn.cancel()
        hanging.abandon()
        for call in calls:
            with pytest.raises(CancelledTurnError):
                call.result()
        may_end.set()
        assert late.result() == "late"


def test_a_nested_turn_ends_with_the_outer_one():
    first, second = turns(2)
    computed = threading.Event()

    def call():
        with compute_turn():
            with compute_turn():
                pass
            assert not computed.wait(0.01)
        return "first"

    def call_second():
        with compute_turn():
            computed.set()

    with ThreadPoolExecutor(1) as threads:
        later = threads.submit(run_in_turn, second, Handler(), call_second)
        assert run_in_turn(first, Handler(), call) == "first"
        later.result()


def test_the_time_that_a_call_waits_is_measured_and_reset_afterwards():
    first, second = turns(2)

    def call():
        with compute_turn():
            return get_waited_ns()

    with ThreadPoolExecutor(1) as threads:
        later = threads.submit(run_in_turn, second, Handler(), call)
        run_in_turn(first, Handler(), lambda: None)
        assert later.result() > 0
        assert threads.submit(get_waited_ns).result() == 0


def test_without_overlap_a_turn_has_no_effect():
    with compute_turn():
        assert get_waited_ns() == 0


def test_a_keyed_handler_delegates_to_its_handler():
    assert get_call_overlap(KeyedModelHandler(Handler())) == CallOverlap(uses_turn=True)
    assert get_call_overlap(KeyedModelHandler(Handler(False))) == CallOverlap()
    assert get_call_overlap(object()) == CallOverlap()
