"""An optimization is used if measuring shows that it is faster."""

from __future__ import annotations

import pytest

from runinference.batching.measured_switch import MeasuredSwitch


def decide(switch: MeasuredSwitch, without: float, with_it: float, n_elements=10) -> int:
    """Measure batches until the decision is made, and return their number."""
    for n in range(1, 100):
        switch.record(n_elements, with_it if switch.is_on else without)
        if switch.is_decided:
            return n
    raise AssertionError("no decision")


@pytest.mark.parametrize(
    ("without", "with_it", "is_on"),
    [
        (0.050, 0.030, True),
        (0.050, 0.045, True),
        (0.050, 0.049, False),  # not worth it
        (0.050, 0.080, False),
        (1e-4, 1e-5, False),  # too short
        (0.0, 0.0, False),  # a clock that doesn't advance
    ],
)
def test_is_on_if_a_batch_takes_less_time(without, with_it, is_on):
    switch = MeasuredSwitch(min_secs=0.002)
    decide(switch, without, with_it)
    assert switch.is_on is is_on


def test_a_clear_difference_is_decided_sooner_than_a_small_one():
    assert decide(MeasuredSwitch(), 0.05, 0.02) < decide(MeasuredSwitch(), 0.05, 0.045)
    assert decide(MeasuredSwitch(), 0.05, 0.09) < decide(MeasuredSwitch(), 0.05, 0.045)


def test_is_on_for_short_batches_if_they_have_no_minimum():
    switch = MeasuredSwitch()
    decide(switch, 1e-4, 1e-5)
    assert switch.is_on


def test_measures_the_given_number_of_batches():
    assert decide(MeasuredSwitch(batches_without=4), 0.05, 0.02) == 4 + 8


def test_is_never_on_for_short_batches():
    switch = MeasuredSwitch(min_secs=0.002)
    for _ in range(1_000):
        assert not switch.is_on
        switch.record(1_000, 0.001)


def test_is_never_on_for_short_calls_if_the_pipeline_takes_longer():
    switch = MeasuredSwitch(min_secs=0.002)
    for _ in range(1_000):
        assert not switch.is_on
        switch.record_call(0.001)
        switch.record(1_000, 0.01)


def test_one_slow_batch_among_short_ones_does_not_turn_it_on():
    switch = MeasuredSwitch(min_secs=0.002)
    for n in range(100):
        assert not switch.is_on
        switch.record(1_000, 0.1 if n % 4 == 1 else 0.001)


def test_a_decision_is_remeasured_at_increasing_intervals():
    switch = MeasuredSwitch()
    decide(switch, 0.05, 0.02)
    lengths, n = [], 0
    while len(lengths) < 3:
        was_decided = switch.is_decided
        switch.record(10, 0.05 if switch.is_on else 0.01)  # now it is slower when on
        n = n + 1 if was_decided else 0
        if was_decided and not switch.is_decided:
            lengths.append(n)
    assert not switch.is_on
    assert lengths == [64, 128, 256]


def test_batches_of_different_sizes_are_compared_by_time_per_element():
    switch = MeasuredSwitch()
    while not switch.is_decided:
        switch.record(*((100, 0.2) if switch.is_on else (10, 0.1)))
    assert switch.is_on
