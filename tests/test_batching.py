"""Which elements share a call of the model."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runinference import KeyedModelHandler
from runinference.batching import AdaptiveSize, BatchPolicy, Gatherer, policy_of, size_in_bytes
from runinference.errors import OptionError, UnknownOptionError
from tiny import Doubler


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


def itself(n: int) -> int:
    return n


def budget(n: int, **fields) -> BatchPolicy:
    return BatchPolicy(max_padded=n, measure=itself, **fields)


def padded(batch: list[int]) -> int:
    return max(batch) * len(batch)


def lengths_of_texts(n: int) -> list[int]:
    lengths = np.random.default_rng(0).lognormal(3.6, 0.9, n)
    return np.clip(lengths, 4, 512).astype(int).tolist()


def test_a_budget_on_padded_size_sorts_and_the_longest_come_first():
    assert batches(budget(12), [1, 6, 2, 5, 20, 1]) == [[20], [6, 5], [2, 1, 1]]


def test_padding_of_texts_within_a_budget_is_a_tenth_at_most():
    lengths = lengths_of_texts(1_024)
    found = batches(budget(2_048), lengths)
    assert sum(map(padded, found)) <= 1.1 * sum(lengths)
    assert len(found) <= 30
    in_order = [lengths[i : i + 32] for i in range(0, 1_024, 32)]
    assert sum(map(padded, in_order)) > 3 * sum(lengths)


def test_a_larger_budget_gets_a_larger_window():
    lengths = lengths_of_texts(8_000)
    found = batches(budget(8_192), lengths)
    assert sum(map(padded, found)) <= 1.1 * sum(lengths)


def test_a_window_is_handed_on_before_the_end_and_keeps_what_is_less_than_a_batch():
    policy = budget(512)
    gatherer = Gatherer(policy, AdaptiveSize(policy))
    lengths = lengths_of_texts(2_500)
    full = [batch for n in lengths for batch in gatherer.add(n, n)]
    assert 2 * 1_024 - 512 // 4 <= sum(map(len, full)) < 2 * 1_024
    rest = gatherer.flush()
    assert sorted(n for batch in [*full, *rest] for n in batch) == sorted(lengths)
    assert not gatherer.flush()


def test_a_window_smaller_than_the_budget_is_one_batch():
    policy = budget(10**9)
    gatherer = Gatherer(policy, AdaptiveSize(policy))
    full = [batch for _ in range(10_000) for batch in gatherer.add(1, 1)]
    assert [len(batch) for batch in full] == [10_000]


def test_a_window_is_bounded_by_bytes():
    policy = BatchPolicy(max_padded=10**9, measure=len)
    gatherer = Gatherer(policy, AdaptiveSize(policy))
    megabyte = np.zeros(1 << 20, np.int8)
    n_batches = [len(gatherer.add(megabyte, None)) for _ in range(64)]
    assert n_batches == [0] * 63 + [1]


@given(
    st.lists(st.integers(0, 30)),
    st.integers(1, 8),
    st.integers(1, 60),
    st.integers(1, 40),
    st.lists(st.integers(1, 30), unique=True).map(sorted),
)
def test_with_a_budget_nothing_is_lost_and_every_limit_holds(
    elements, size, most_padded, weight, boundaries
):
    policy = budget(
        most_padded,
        max_size=size,
        max_weight=weight,
        weigh=itself,
        boundaries=tuple(boundaries),
    )
    found = batches(policy, elements)
    assert sorted(n for batch in found for n in batch) == sorted(elements)
    for batch in found:
        assert 1 <= len(batch) <= size
        assert sum(batch) <= weight or len(batch) == 1
        assert padded(batch) == policy.padded_size(batch)
        assert padded(batch) <= most_padded or len(batch) == 1
        assert len({policy.bucket(n) for n in batch}) == 1


def test_a_budget_has_no_buckets_unless_they_are_asked_for():
    options = {"length_fn": len, "max_padded_size": 100}
    assert BatchPolicy.of(options).boundaries == ()
    assert BatchPolicy.of({**options, "bucket_boundaries": [4]}).boundaries == (4,)


def test_the_budget_of_a_handler_is_ours_alone_and_goes_with_it_into_another():
    handler = Doubler("budget", max_padded_size=10, batch_length_fn=itself, max_batch_bytes=100)
    assert handler.batch_elements_kwargs() == {"length_fn": itself}
    for one in (handler, handler.with_preprocess_fn(float), KeyedModelHandler(handler)):
        assert policy_of(one).max_padded == 10
        assert policy_of(one).max_bytes == 100
    assert policy_of(KeyedModelHandler(handler)).length(("key", 7)) == 7


def test_a_handler_predicts_within_its_budget_and_keeps_the_order():
    handler = Doubler("order in a budget", max_padded_size=12, batch_length_fn=int)
    results = handler.predict([1, 6, 2, 5, 20])
    assert [result.inference for result in results] == [2, 12, 4, 10, 40]
    assert handler.sizes == [1, 2, 2]


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


def test_a_few_slow_calls_do_not_settle_the_size_for_good():
    size = AdaptiveSize(BatchPolicy(max_size=32))
    size.record(1, 1.0)
    for noise in (0, 0, 0, 0.4, 0.4, 0.4, 0.8, 0.8, 0.8):
        size.record(size.now, 0.003 + 0.0003 * size.now + noise)
    assert (size.settled, size.now) == (True, 1)
    for _ in range(100):
        size.record(size.now, 0.003 + 0.0003 * size.now)
    assert size.now == 32


@pytest.mark.parametrize(("low", "high"), [(3, 100), (1, 7), (5, 5)])
def test_the_size_stays_within_its_limits(low, high):
    policy = BatchPolicy(min_size=low, max_size=high)
    size = AdaptiveSize(policy)
    for _ in range(50):
        assert low <= size.now <= high
        size.record(size.now, 1e-3 + 1e-6 * size.now)


def test_a_budget_decides_the_size_and_no_search_does():
    size = AdaptiveSize(budget(100, max_size=50))
    assert (size.now, size.budget, size.settled) == (50, 100, True)


def go_well(size: AdaptiveSize, calls: int = 32) -> None:
    for _ in range(calls):
        size.record(size.now, 1e-3)


@pytest.mark.parametrize("policy", [fixed(64), BatchPolicy(min_size=64, max_size=100)])
def test_out_of_memory_halves_the_size_and_calls_that_go_well_double_it_again(policy):
    size = AdaptiveSize(policy)
    size.out_of_memory(64)
    assert size.now == 32
    size.out_of_memory(32)
    size.out_of_memory(32)
    assert size.now == 16
    go_well(size, 31)
    assert size.now == 16
    go_well(size, 1)
    assert size.now == 32
    go_well(size)
    assert size.now == 64
    go_well(size, 1_000)
    assert size.now <= policy.max_size


def test_small_calls_do_not_prove_that_large_ones_fit():
    size = AdaptiveSize(fixed(64))
    size.out_of_memory(64)
    for _ in range(100):
        size.record(3, 1e-3)
    assert size.now == 32


def test_a_size_that_proves_too_high_again_is_tried_more_and_more_rarely():
    size = AdaptiveSize(fixed(64))
    waits = []
    for _ in range(4):
        size.out_of_memory(64)
        calls = 0
        while size.now < 64:
            go_well(size, 1)
            calls += 1
        waits.append(calls)
    assert waits == [32, 64, 128, 256]


def test_one_element_that_does_not_fit_alone_leaves_a_size_of_one_for_a_while():
    size = AdaptiveSize(fixed(8))
    for n in (8, 4, 2, 1):
        size.out_of_memory(n)
    assert size.now == 1
    go_well(size, 3 * 32)
    assert size.now == 8


def test_the_search_goes_on_below_what_fits():
    size = AdaptiveSize(BatchPolicy(max_size=1_000))
    for _ in range(10_000):
        if size.now > 100:
            size.out_of_memory(size.now)
        size.record(size.now, 1.0)
        assert size.now <= 128
    assert size.now == 64


def test_out_of_memory_within_a_budget_halves_the_budget_and_not_the_number():
    policy = budget(1_000, max_size=500)
    size = AdaptiveSize(policy)
    size.out_of_memory(4, policy.padded_size([200, 200, 100, 100]))
    assert (size.now, size.budget) == (500, 400)
    gatherer = Gatherer(policy, size)
    for n in (200, 200, 100, 100, 1, 1):
        gatherer.add(n, n)
    assert gatherer.flush() == [[200, 200], [100, 100, 1, 1]]
    go_well(size)
    assert size.budget == 800
    size.out_of_memory(4)
    assert size.now == 2


def test_threads_that_run_out_of_memory_together_halve_once():
    size = AdaptiveSize(fixed(64))
    barrier = threading.Barrier(8)

    def fail() -> None:
        barrier.wait()
        size.out_of_memory(64)

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert size.now == 32


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
        ({"max_padded_size": 9}, "max_padded_size needs batch_length_fn"),
        ({"length_fn": len, "max_padded_size": 0}, "max_padded_size must be greater than 0"),
        (
            {"length_fn": len, "max_padded_size": 8, "min_batch_size": 9},
            r"min_batch_size \(9\) elements are longer than max_padded_size \(8\)",
        ),
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
