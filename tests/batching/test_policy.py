"""Which elements share a call of the model."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from common import Doubler
from runinference import KeyedModelHandler
from runinference.batching.policy import BatchPolicy, resolve_policy, size_in_bytes
from runinference.errors import OptionError, UnknownOptionError


def test_a_budget_has_no_buckets_unless_they_are_asked_for():
    options = {"length_fn": len, "max_padded_size": 100}
    assert BatchPolicy.from_options(options).bucket_boundaries == ()
    assert BatchPolicy.from_options({**options, "bucket_boundaries": [4]}).bucket_boundaries == (4,)


def test_the_budget_of_a_handler_is_ours_alone_and_goes_with_it_into_another():
    handler = Doubler("budget", max_padded_size=10, batch_length_fn=int, max_batch_bytes=100)
    assert handler.batch_elements_kwargs() == {"length_fn": int}
    for one in (handler, handler.with_preprocess_fn(float), KeyedModelHandler(handler)):
        assert resolve_policy(one).max_padded_size == 10
        assert resolve_policy(one).max_batch_bytes == 100
    assert resolve_policy(KeyedModelHandler(handler)).length(("key", 7)) == 7


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
        ({"bucket_boundaries": [1]}, "needs batch_length_fn"),
        ({"max_padded_size": 9}, "max_padded_size needs batch_length_fn"),
        ({"length_fn": len, "max_padded_size": 0}, "max_padded_size must be greater than 0"),
        (
            {"length_fn": len, "max_padded_size": 8, "min_batch_size": 9},
            r"min_batch_size \(9\) elements exceed max_padded_size \(8\)",
        ),
        ({"length_fn": len, "bucket_boundaries": [4, 2]}, "ascending"),
        ({"length_fn": len, "bucket_boundaries": [0, 2]}, "positive"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        BatchPolicy.from_options(options)


def test_an_element_size_without_a_weight_counts_against_the_size_of_the_batch_as_in_beam():
    policy = BatchPolicy.from_options(
        {"element_size_fn": len, "min_batch_size": 8, "max_batch_size": 20}
    )
    assert policy.max_batch_weight == 20
    assert policy.min_batch_size == policy.max_batch_size  # nothing is searched: the weight decides
    policy = BatchPolicy.from_options(
        {"element_size_fn": len, "max_batch_weight": 20, "max_batch_size": 3}
    )
    assert (policy.max_batch_weight, policy.max_batch_size) == (20, 3)


def test_an_unknown_option_is_refused_with_the_nearest_one():
    with pytest.raises(UnknownOptionError, match="Did you mean 'max_batch_size'"):
        BatchPolicy.from_options({"max_batchsize": 3})


def test_what_tunes_beams_batches_is_understood():
    assert (
        BatchPolicy.from_options({"target_batch_overhead": 0.1, "variance": 0.2}) == BatchPolicy()
    )


def test_sparse_tensors_are_measured():
    sparse = torch.eye(3).to_sparse()
    assert size_in_bytes(sparse) == 3 * (4 + 2 * 8)
    assert size_in_bytes(torch.eye(3).to_sparse_csr()) > 0


def test_a_field_that_is_called_nbytes_is_no_size():
    class File(NamedTuple):
        name: str
        nbytes: Any

    assert size_in_bytes(File("a", None)) == size_in_bytes(("a", None))
    assert size_in_bytes(File("a", "7")) == size_in_bytes(("a", "7"))
