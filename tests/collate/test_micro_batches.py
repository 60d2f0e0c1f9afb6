"""Micro-batches of similar length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runinference.collate.micro_batches import MicroBatchLimits, divide_by_length

LENGTHS = st.lists(st.integers(0, 100), max_size=50)


@given(LENGTHS, st.integers(1, 500), st.integers(0, 100))
def test_each_example_is_in_one_micro_batch_within_the_limits(lengths, max_size, max_padding):
    groups = divide_by_length(lengths, MicroBatchLimits(max_size, max_padding))
    assert sorted(index for group in groups for index in group) == [*range(len(lengths))]
    for group in groups:
        assert group == sorted(group)
        longest = max(lengths[index] for index in group)
        assert len(group) == 1 or longest * len(group) <= max_size
        assert sum(longest - lengths[index] for index in group) <= max_padding


@given(LENGTHS.filter(bool))
def test_the_longest_examples_come_first(lengths):
    groups = divide_by_length(lengths, MicroBatchLimits(max_padded_size=100, max_padding=20))
    ordered = [lengths[index] for group in groups for index in group]
    longest = [max(lengths[index] for index in group) for group in groups]
    assert longest == sorted(longest, reverse=True)
    assert longest[0] == max(ordered)


def test_without_limits_there_is_one_micro_batch_in_the_order_of_the_batch():
    assert divide_by_length([3, 9, 1], MicroBatchLimits()) == [[0, 1, 2]]


def test_without_padding_only_equal_lengths_share_a_micro_batch():
    assert divide_by_length([3, 9, 3], MicroBatchLimits(max_padding=0)) == [[1], [0, 2]]
