"""The batcher emits a batch when it is full."""

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


def test_keeps_a_fixed_size_and_flushes_the_rest():
    assert batches(fixed(3), range(7)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_exceeds_the_maximum_weight_only_for_a_single_element():
    policy = fixed(100, max_batch_weight=10, element_size_fn=lambda n: n)
    assert batches(policy, [4, 6, 1, 20, 3]) == [[4, 6], [1], [20], [3]]


def test_exceeds_the_maximum_bytes_only_for_a_single_element():
    rows = [np.zeros(n, np.int8) for n in (40, 60, 10, 200, 30)]
    sizes = [
        [len(row) for row in batch] for batch in batches(fixed(100, max_batch_bytes=100), rows)
    ]
    assert sizes == [[40, 60], [10], [200], [30]]


def test_batches_hold_one_bucket_and_a_boundary_belongs_to_the_upper_bucket():
    policy = fixed(100, length_fn=len, bucket_boundaries=(2, 4))
    words = ["a", "bb", "cccc", "d", "eee", "ffff"]
    assert batches(policy, words) == [["a", "d"], ["bb", "eee"], ["cccc", "ffff"]]


def test_uses_the_bucket_boundaries_of_beam_by_default():
    policy = BatchPolicy.from_options({"length_fn": len})
    assert policy.bucket_boundaries == (16, 32, 64, 128, 256, 512)


@given(
    st.lists(st.integers(1, 30)),
    st.integers(1, 8),
    st.integers(1, 40),
    st.lists(st.integers(1, 30), unique=True).map(sorted),
)
def test_emits_each_element_once_and_keeps_every_limit(elements, size, weight, boundaries):
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


def identity(n: int) -> int:
    return n


def with_padded_size(n: int, **fields) -> BatchPolicy:
    return BatchPolicy(max_padded_size=n, length_fn=identity, **fields)


def padded_size(batch: list[int]) -> int:
    return max(batch) * len(batch)


def make_text_lengths(n: int) -> list[int]:
    lengths = np.random.default_rng(0).lognormal(3.6, 0.9, n)
    return np.clip(lengths, 4, 512).astype(int).tolist()


def test_sorts_by_length_and_emits_the_longest_first_with_a_maximum_padded_size():
    assert batches(with_padded_size(12), [1, 6, 2, 5, 20, 1]) == [[20], [6, 5], [2, 1, 1]]


def test_padding_of_texts_is_at_most_a_tenth():
    lengths = make_text_lengths(1_024)
    found = batches(with_padded_size(2_048), lengths)
    assert sum(map(padded_size, found)) <= 1.1 * sum(lengths)
    assert len(found) <= 30
    in_order = [lengths[i : i + 32] for i in range(0, 1_024, 32)]
    assert sum(map(padded_size, in_order)) > 3 * sum(lengths)


def test_a_larger_padded_size_gets_a_larger_window():
    lengths = make_text_lengths(8_000)
    found = batches(with_padded_size(8_192), lengths)
    assert sum(map(padded_size, found)) <= 1.1 * sum(lengths)


def test_emits_a_full_window_and_keeps_the_incomplete_batch():
    policy = with_padded_size(512)
    batcher = Batcher(policy, AdaptiveSize(policy))
    lengths = make_text_lengths(2_500)
    full = [batch for n in lengths for batch in batcher.add(n, n)]
    assert 2 * 1_024 - 512 // 4 <= sum(map(len, full)) < 2 * 1_024
    rest = batcher.flush()
    assert sorted(n for batch in [*full, *rest] for n in batch) == sorted(lengths)
    assert not batcher.flush()


def test_emits_one_batch_if_the_window_fits_into_the_padded_size():
    policy = with_padded_size(10**9)
    batcher = Batcher(policy, AdaptiveSize(policy))
    full = [batch for _ in range(10_000) for batch in batcher.add(1, 1)]
    assert [len(batch) for batch in full] == [10_000]


def test_limits_the_bytes_of_a_window():
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
def test_emits_each_element_once_and_keeps_every_limit_with_a_maximum_padded_size(
    elements, size, max_padded_size, weight, boundaries
):
    policy = with_padded_size(
        max_padded_size,
        max_batch_size=size,
        max_batch_weight=weight,
        element_size_fn=identity,
        bucket_boundaries=tuple(boundaries),
    )
    found = batches(policy, elements)
    assert sorted(n for batch in found for n in batch) == sorted(elements)
    for batch in found:
        assert 1 <= len(batch) <= size
        assert sum(batch) <= weight or len(batch) == 1
        assert padded_size(batch) == policy.padded_size(batch)
        assert padded_size(batch) <= max_padded_size or len(batch) == 1
        assert len({policy.bucket(n) for n in batch}) == 1


def test_predict_keeps_the_maximum_padded_size_and_the_order():
    handler = Doubler("keeps order", max_padded_size=12, batch_length_fn=int)
    results = handler.predict([1, 6, 2, 5, 20])
    assert [result.inference for result in results] == [2, 12, 4, 10, 40]
    assert handler.sizes == [1, 2, 2]


def test_batches_elements_whose_size_in_bytes_is_hard_to_determine():
    policy = BatchPolicy(min_batch_size=3, max_batch_size=3)
    batcher = Batcher(policy, AdaptiveSize(policy))
    elements = [SimpleNamespace(nbytes=None), torch.eye(3).to_sparse(), np.zeros(3)]
    full = [batch for element in elements for batch in batcher.add(element, id(element))]
    assert full == [[id(element) for element in elements]]
