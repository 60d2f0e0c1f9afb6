"""Batch limits from the options of a handler, and the size of elements."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from common import Doubler
from runinference import KeyedModelHandler
from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.batcher import Batcher
from runinference.batching.element_size import size_in_bytes
from runinference.batching.policy import BatchPolicy, resolve_policy
from runinference.errors import ElementError, OptionError, UnknownOptionError


def test_a_maximum_padded_size_has_no_buckets_by_default():
    options = {"length_fn": len, "max_padded_size": 100}
    assert BatchPolicy.from_options(options).bucket_boundaries == ()
    assert BatchPolicy.from_options({**options, "bucket_boundaries": [4]}).bucket_boundaries == (4,)


def test_options_unknown_to_beam_are_not_passed_to_batch_elements_and_apply_to_wrappers():
    handler = Doubler("budget", max_padded_size=10, batch_length_fn=int, max_batch_bytes=100)
    assert handler.batch_elements_kwargs() == {"length_fn": int}
    for one in (handler, handler.with_preprocess_fn(float), KeyedModelHandler(handler)):
        assert resolve_policy(one).max_padded_size == 10
        assert resolve_policy(one).max_batch_bytes == 100
    assert resolve_policy(KeyedModelHandler(handler)).length(("key", 7)) == 7


def test_size_in_bytes_is_the_data_of_arrays_tensors_and_frames():
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
def test_conflicting_options_raise_an_error(options, message):
    with pytest.raises(OptionError, match=message):
        BatchPolicy.from_options(options)


def test_the_batch_size_limits_the_weight_if_no_maximum_weight_is_set_as_in_beam():
    policy = BatchPolicy.from_options(
        {"element_size_fn": len, "min_batch_size": 8, "max_batch_size": 20}
    )
    assert policy.max_batch_weight == 20
    assert (
        policy.min_batch_size == policy.max_batch_size
    )  # nothing is explored: the weight determines the batch
    policy = BatchPolicy.from_options(
        {"element_size_fn": len, "max_batch_weight": 20, "max_batch_size": 3}
    )
    assert (policy.max_batch_weight, policy.max_batch_size) == (20, 3)


def test_an_unknown_option_raises_an_error_with_a_suggestion():
    with pytest.raises(UnknownOptionError, match="Did you mean 'max_batch_size'"):
        BatchPolicy.from_options({"max_batchsize": 3})


def test_ignores_the_options_that_tune_beams_batch_elements():
    assert (
        BatchPolicy.from_options({"target_batch_overhead": 0.1, "variance": 0.2}) == BatchPolicy()
    )


def test_size_in_bytes_of_sparse_tensors():
    sparse = torch.eye(3).to_sparse()
    assert size_in_bytes(sparse) == 3 * (4 + 2 * 8)
    assert size_in_bytes(torch.eye(3).to_sparse_csr()) > 0


def test_size_in_bytes_ignores_a_users_field_named_nbytes():
    class File(NamedTuple):
        name: str
        nbytes: Any

    assert size_in_bytes(File("a", None)) == size_in_bytes(("a", None))
    assert size_in_bytes(File("a", "7")) == size_in_bytes(("a", "7"))


@pytest.mark.parametrize("measured", [None, "a", -1, float("nan")])
@pytest.mark.parametrize("option", ["length_fn", "element_size_fn"])
def test_functions_must_return_a_number_of_at_least_zero(option, measured):
    policy = BatchPolicy.from_options({option: lambda element: measured})
    with pytest.raises(
        ElementError, match=f"{option} returned {measured!r} for an element of type int"
    ):
        Batcher(policy, AdaptiveSize(policy)).add(1, 1)
