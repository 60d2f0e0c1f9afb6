"""Batches are split into requests, and no attempt sees what another one modified."""

from __future__ import annotations

import copy
import dataclasses
import threading

import numpy as np
import pandas as pd
import pytest
from apache_beam.ml.inference import base as beam_base
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.fakes import FunctionEndpoint, ScriptedModel, double


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(), max_size=60), st.integers(1, 9), st.integers(1, 5))
def test_returns_one_result_per_example_for_all_sizes(examples, size, n_concurrent):
    sizes = []

    def respond(batch, args):
        sizes.append(len(batch))
        return double(batch)

    handler = FunctionEndpoint(respond, max_request_size=size, max_concurrent_requests=n_concurrent)
    assert handler.predict(examples) == double(examples)
    assert sum(sizes) == len(examples)
    assert max(sizes, default=0) <= size


@pytest.mark.parametrize(
    "batch",
    [
        np.arange(20.0).reshape(10, 2),
        pd.DataFrame({"a": range(10), "b": range(10)}),
        tuple(range(10)),
    ],
    ids=["array", "frame", "tuple"],
)
def test_splits_arrays_frames_and_tuples_by_rows(batch):
    kinds = []

    def respond(part, args):
        kinds.append((type(part), len(part)))
        return [float(np.sum(np.asarray(row))) for row in np.asarray(part)]

    handler = FunctionEndpoint(respond, max_request_size=4).with_no_batching()
    expected = [float(np.sum(row)) for row in np.asarray(batch)]
    assert handler.predict([batch]) == expected
    assert sorted(n for _, n in kinds) == [2, 4, 4]
    assert {kind for kind, _ in kinds} == {type(batch)}


def test_does_not_split_a_mapping():
    handler = FunctionEndpoint(
        lambda batch, args: double(batch["x"]), max_request_size=1
    ).with_no_batching()
    assert handler.predict([{"x": [1, 2, 3]}]) == [2, 4, 6]


# --- copies


def test_each_attempt_gets_its_own_copy_of_the_arguments():
    seen = []
    failures = ScriptedModel(ConnectionError())

    def respond(batch, args):
        seen.append(copy.deepcopy(args))
        args["stop"].append("END")
        args["nested"]["n"] += 1
        args["new"] = True
        return failures(batch)

    given_args = {"stop": [], "nested": {"n": 0}}
    FunctionEndpoint(respond, max_request_size=1).call(list(range(20)), **given_args)
    assert seen == [{"stop": [], "nested": {"n": 0}}] * 21
    assert given_args == {"stop": [], "nested": {"n": 0}}


def test_in_beam_calls_share_the_arguments():
    seen = []

    class InBeam(beam_base.RemoteModelHandler):
        def create_client(self):
            return None

        def request(self, batch, model, inference_args=None):
            seen.append(list(inference_args["stop"]))
            inference_args["stop"].append("END")
            return batch

    handler, args = InBeam("beam"), {"stop": []}
    for _ in range(3):
        handler.run_inference([1], None, args)
    assert seen == [[], ["END"], ["END", "END"]]


def test_shares_arguments_that_cannot_be_copied():
    lock = threading.Lock()
    handler = FunctionEndpoint(lambda batch, args: [args["lock"]] * len(batch))
    assert handler.call([1, 2], lock=lock) == [lock, lock]


@dataclasses.dataclass
class Point:
    x: float


def change_number(point):
    point.x *= 2


EXAMPLES = {
    "dictionaries": ([{"x": [1.0]}, {"x": [2.0]}], lambda example: example["x"].append(0)),
    "lists": ([[1.0], [2.0]], lambda example: example.append(0)),
    "arrays": ([np.ones(2), np.zeros(2)], lambda example: example.fill(7)),
    "objects": ([Point(1.0), Point(2.0)], change_number),
}


@pytest.mark.parametrize(("examples", "change"), EXAMPLES.values(), ids=EXAMPLES)
def test_a_retry_sees_the_examples_as_they_came(examples, change):
    seen = []
    failures = ScriptedModel(ConnectionError(), [0, 0])

    def change_all(batch, args):
        seen.append([repr(example) for example in batch])
        for example in batch:
            change(example)
        return failures(batch)

    expected = [repr(example) for example in examples]
    FunctionEndpoint(change_all).call(examples)
    assert seen == [expected, expected]


def test_each_attempt_gets_its_own_copy_of_the_batch():
    failures = ScriptedModel(ConnectionError())

    def empty_the_batch(batch, args):
        results = [2 * batch.pop(0) for _ in range(len(batch))]
        failures(batch)
        return results

    batch = [1, 2, 3]
    assert FunctionEndpoint(empty_the_batch).call(batch) == [2, 4, 6]
    assert batch == [1, 2, 3]
