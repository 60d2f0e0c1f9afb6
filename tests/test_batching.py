"""Which elements share a call of the model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runinference.batching import AdaptiveSize, BatchPolicy, Gatherer, size_in_bytes
from runinference.errors import OptionError, UnknownOptionError


def batches(policy: BatchPolicy, elements):
    gatherer = Gatherer(policy, AdaptiveSize(policy))
    full = [batch for element in elements for batch in gatherer.add(element, element)]
    return [*full, *gatherer.flush()]


def fixed(size: int, **fields) -> BatchPolicy:
    return BatchPolicy(min_size=size, max_size=size, **fields)


def test_a_fixed_size_is_kept_and_the_rest_comes_at_the_end():
    assert batches(fixed(3), range(7)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_weight_is_never_passed_except_by_one_element_alone():
    policy = fixed(100, max_weight=10, weigh=lambda n: n)
    assert batches(policy, [4, 6, 1, 20, 3]) == [[4, 6], [1], [20], [3]]


def test_bytes_are_never_passed_except_by_one_element_alone():
    rows = [np.zeros(n, np.int8) for n in (40, 60, 10, 200, 30)]
    sizes = [[len(row) for row in batch] for batch in batches(fixed(100, max_bytes=100), rows)]
    assert sizes == [[40, 60], [10], [200], [30]]


def test_lengths_of_one_bucket_share_a_batch_and_a_boundary_is_in_the_upper_bucket():
    policy = fixed(100, measure=len, boundaries=(2, 4))
    words = ["a", "bb", "cccc", "d", "eee", "ffff"]
    assert batches(policy, words) == [["a", "d"], ["bb", "eee"], ["cccc", "ffff"]]


def test_a_length_without_boundaries_uses_those_of_beam():
    policy = BatchPolicy.of({"length_fn": len})
    assert policy.boundaries == (16, 32, 64, 128, 256, 512)


@given(
    st.lists(st.integers(1, 30)),
    st.integers(1, 8),
    st.integers(1, 40),
    st.lists(st.integers(1, 30), unique=True).map(sorted),
)
def test_nothing_is_lost_or_twice_and_every_limit_holds(elements, size, weight, boundaries):
    policy = fixed(
        size,
        max_weight=weight,
        weigh=lambda n: n,
        measure=lambda n: n,
        boundaries=tuple(boundaries),
    )
    found = batches(policy, elements)
    assert sorted(n for batch in found for n in batch) == sorted(elements)
    for batch in found:
        assert 1 <= len(batch) <= size
        assert sum(batch) <= weight or len(batch) == 1
        assert len({policy.bucket(n) for n in batch}) == 1


def learn(policy: BatchPolicy, seconds) -> AdaptiveSize:
    size = AdaptiveSize(policy)
    for _ in range(100):
        size.record(size.now, seconds(size.now))
    return size


def test_a_call_with_a_large_fixed_cost_gets_large_batches():
    assert learn(BatchPolicy(), lambda n: 1e-3 + 1e-6 * n).now >= 4096


def test_a_call_that_costs_the_same_for_each_element_stays_small():
    assert learn(BatchPolicy(), lambda n: 1e-2 * n).now == 1


def test_a_call_that_gets_dearer_with_size_settles_where_it_was_cheapest():
    assert learn(BatchPolicy(), lambda n: n * (1e-3 / min(n, 8) + 1e-4 * max(0, n - 8))).now == 8


@pytest.mark.parametrize(("low", "high"), [(3, 100), (1, 7), (5, 5)])
def test_the_size_stays_within_its_limits(low, high):
    policy = BatchPolicy(min_size=low, max_size=high)
    size = AdaptiveSize(policy)
    for _ in range(50):
        assert low <= size.now <= high
        size.record(size.now, 1e-3 + 1e-6 * size.now)


def test_bytes_are_what_arrays_tensors_and_frames_hold():
    assert size_in_bytes(np.zeros((2, 3))) == 48
    assert size_in_bytes(torch.zeros(4, 1000)) == 16_000
    assert size_in_bytes({"a": np.zeros(2), "b": np.zeros(2)}) == 32 + size_in_bytes(
        "a"
    ) + size_in_bytes("b")
    assert size_in_bytes([np.zeros(2), np.zeros(2)]) == 32
    frame = pd.DataFrame({"x": [1.0]})
    assert size_in_bytes(frame) == frame.memory_usage(deep=True).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"min_batch_size": 8, "max_batch_size": 4},
            r"min_batch_size \(8\) is greater than max_batch_size \(4\)",
        ),
        ({"max_batch_size": 0}, "max_batch_size must be greater than 0"),
        ({"element_size_fn": len}, "give max_batch_weight too"),
        ({"bucket_boundaries": [1]}, "needs batch_length_fn"),
        ({"length_fn": len, "bucket_boundaries": [4, 2]}, "ascending"),
        ({"length_fn": len, "bucket_boundaries": [0, 2]}, "positive"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        BatchPolicy.of(options)


def test_an_unknown_option_is_refused_with_the_nearest_one():
    with pytest.raises(UnknownOptionError, match="Did you mean 'max_batch_size'"):
        BatchPolicy.of({"max_batchsize": 3})


def test_what_tunes_beams_batches_is_understood():
    assert BatchPolicy.of({"target_batch_overhead": 0.1, "variance": 0.2}) == BatchPolicy()
