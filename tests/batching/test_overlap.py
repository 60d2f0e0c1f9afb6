"""Calls overlap if measuring shows that a pipeline is faster with it."""

from __future__ import annotations

import pytest

from runinference.batching.overlap import OverlapDecision


def decide(decision: OverlapDecision, separate: float, overlapping: float, n_elements=10) -> int:
    """Measure batches until the decision is made, and return their number."""
    for n in range(1, 100):
        decision.record(n_elements, overlapping if decision.overlaps else separate)
        if decision.is_made:
            return n
    raise AssertionError("no decision")


@pytest.mark.parametrize(
    ("separate", "overlapping", "overlaps"),
    [
        (0.050, 0.030, True),
        (0.050, 0.045, True),
        (0.050, 0.049, False),  # not worth another thread
        (0.050, 0.080, False),
        (1e-4, 1e-5, False),  # a batch of microseconds never runs in another thread
        (0.0, 0.0, False),  # a clock that stands still
    ],
)
def test_calls_overlap_if_a_batch_takes_less_time(separate, overlapping, overlaps):
    decision = OverlapDecision()
    decide(decision, separate, overlapping)
    assert decision.overlaps is overlaps


def test_a_clear_difference_is_decided_sooner_than_a_small_one():
    assert decide(OverlapDecision(), 0.05, 0.02) < decide(OverlapDecision(), 0.05, 0.045)
    assert decide(OverlapDecision(), 0.05, 0.09) < decide(OverlapDecision(), 0.05, 0.045)


def test_a_cheap_model_is_never_called_in_another_thread():
    decision = OverlapDecision()
    for _ in range(1_000):
        assert not decision.overlaps
        decision.record(1_000, 0.001)


def test_a_model_with_short_calls_is_never_called_in_another_thread_if_the_pipeline_takes_longer():
    decision = OverlapDecision()
    for _ in range(1_000):
        assert not decision.overlaps
        decision.record_call(0.001)
        decision.record(1_000, 0.01)


def test_one_slow_batch_does_not_make_a_model_expensive():
    decision = OverlapDecision()
    for n in range(100):
        assert not decision.overlaps
        decision.record(1_000, 0.1 if n % 4 == 1 else 0.001)


def test_a_decision_is_reviewed_less_and_less_often():
    decision = OverlapDecision()
    decide(decision, 0.05, 0.02)
    lengths, n = [], 0
    while len(lengths) < 3:
        was_made = decision.is_made
        decision.record(10, 0.05 if decision.overlaps else 0.01)  # overlap has become slower
        n = n + 1 if was_made else 0
        if was_made and not decision.is_made:
            lengths.append(n)
    assert not decision.overlaps
    assert lengths == [64, 128, 256]


def test_batches_of_different_sizes_are_compared_by_the_time_of_an_element():
    decision = OverlapDecision()
    while not decision.is_made:
        decision.record(*((100, 0.2) if decision.overlaps else (10, 0.1)))
    assert decision.overlaps
