"""Elements are collected, and handed on as a batch whenever one is full."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from common import Doubler
from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.batcher import Batcher
from runinference.batching.policy import BatchPolicy


def batches(policy: BatchPolicy, elements):
    batcher = Batcher(policy, AdaptiveSize(policy))
    full = [batch for element in elements for batch in batcher.add(element, element)]
    return [*full, *batcher.flush()]


def fixed(size: int, **fields) -> BatchPolicy:
    return BatchPolicy(min_batch_size=size, max_batch_size=size, **fields)


def test_a_fixed_size_is_kept_and_the_rest_comes_at_the_end():
    assert batches(fixed(3), range(7)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_weight_is_never_passed_except_by_one_element_alone():
    policy = fixed(100, max_batch_weight=10, element_size_fn=lambda n: n)
    assert batches(policy, [4, 6, 1, 20, 3]) == [[4, 6], [1], [20], [3]]


def test_bytes_are_never_passed_except_by_one_element_alone():
    rows = [np.zeros(n, np.int8) for n in (40, 60, 10, 200, 30)]
    sizes = [
        [len(row) for row in batch] for batch in batches(fixed(100, max_batch_bytes=100), rows)
    ]
    assert sizes == [[40, 60], [10], [200], [30]]


def test_lengths_of_one_bucket_share_a_batch_and_a_boundary_is_in_the_upper_bucket():
    policy = fixed(100, length_fn=len, bucket_boundaries=(2, 4))
    words = ["a", "bb", "cccc", "d", "eee", "ffff"]
    assert batches(policy, words) == [["a", "d"], ["bb", "eee"], ["cccc", "ffff"]]


def test_a_length_without_boundaries_uses_those_of_beam():
    policy = BatchPolicy.from_options({"length_fn": len})
    assert policy.bucket_boundaries == (16, 32, 64, 128, 256, 512)


@given(
    st.lists(st.integers(1, 30)),
    st.integers(1, 8),
    st.integers(1, 40),
    st.lists(st.integers(1, 30), unique=True).map(sorted),
)
def test_nothing_is_lost_or_twice_and_every_limit_holds(elements, size, weight, boundaries):
    policy = fixed(
        size,
        max_batch_weight=weight,
        element_size_fn=lambda n: n,
        length_fn=lambda n: n,
        bucket_boundaries=tuple(boundaries),
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
    return BatchPolicy(max_padded_size=n, length_fn=itself, **fields)


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
    batcher = Batcher(policy, AdaptiveSize(policy))
    lengths = lengths_of_texts(2_500)
    full = [batch for n in lengths for batch in batcher.add(n, n)]
    assert 2 * 1_024 - 512 // 4 <= sum(map(len, full)) < 2 * 1_024
    rest = batcher.flush()
    assert sorted(n for batch in [*full, *rest] for n in batch) == sorted(lengths)
    assert not batcher.flush()


def test_a_window_smaller_than_the_budget_is_one_batch():
    policy = budget(10**9)
    batcher = Batcher(policy, AdaptiveSize(policy))
    full = [batch for _ in range(10_000) for batch in batcher.add(1, 1)]
    assert [len(batch) for batch in full] == [10_000]


def test_a_window_is_bounded_by_bytes():
    policy = BatchPolicy(max_padded_size=10**9, length_fn=len)
    batcher = Batcher(policy, AdaptiveSize(policy))
    megabyte = np.zeros(1 << 20, np.int8)
    n_batches = [len(batcher.add(megabyte, None)) for _ in range(64)]
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
        max_batch_size=size,
        max_batch_weight=weight,
        element_size_fn=itself,
        bucket_boundaries=tuple(boundaries),
    )
    found = batches(policy, elements)
    assert sorted(n for batch in found for n in batch) == sorted(elements)
    for batch in found:
        assert 1 <= len(batch) <= size
        assert sum(batch) <= weight or len(batch) == 1
        assert padded(batch) == policy.padded_size(batch)
        assert padded(batch) <= most_padded or len(batch) == 1
        assert len({policy.bucket(n) for n in batch}) == 1


def test_a_handler_predicts_within_its_budget_and_keeps_the_order():
    handler = Doubler("order in a budget", max_padded_size=12, batch_length_fn=int)
    results = handler.predict([1, 6, 2, 5, 20])
    assert [result.inference for result in results] == [2, 12, 4, 10, 40]
    assert handler.sizes == [1, 2, 2]


def test_elements_whose_bytes_are_hard_to_tell_are_gathered_too():
    policy = BatchPolicy(min_batch_size=3, max_batch_size=3)
    batcher = Batcher(policy, AdaptiveSize(policy))
    elements = [SimpleNamespace(nbytes=None), torch.eye(3).to_sparse(), np.zeros(3)]
    full = [batch for element in elements for batch in batcher.add(element, id(element))]
    assert full == [[id(element) for element in elements]]
