"""Keys bypass the model and are returned with the results."""

from __future__ import annotations

import pickle

import pytest

from common import Doubler, FunctionHandler, run
from runinference import KeyedModelHandler, MaybeKeyedModelHandler, RunInference
from runinference.errors import OptionError, ResultMismatchError


def test_each_result_is_returned_with_its_key():
    results = run([("a", 1), ("b", 2), ("a", 3)], RunInference(KeyedModelHandler(Doubler("keyed"))))
    assert sorted(results) == [
        ("a", (1, 2, "keyed")),
        ("a", (3, 6, "keyed")),
        ("b", (2, 4, "keyed")),
    ]


def test_keys_cost_no_additional_model_calls():
    handler = Doubler("calls", min_batch_size=50, max_batch_size=50)
    run([(n, n) for n in range(100)], RunInference(KeyedModelHandler(handler)))
    plain = Doubler("plain", min_batch_size=50, max_batch_size=50)
    run(range(100), RunInference(plain))
    assert len(handler.sizes) == len(plain.sizes)


def test_an_element_without_a_key_raises_an_error_with_a_hint():
    with pytest.raises(ValueError, match=r"takes \(key, example\), but got int 1"):
        KeyedModelHandler(Doubler("bare")).predict([1])


@pytest.mark.parametrize("wrapper", [KeyedModelHandler, MaybeKeyedModelHandler])
@pytest.mark.parametrize("kind", ["preprocess", "postprocess"])
def test_functions_of_the_wrapped_handler_are_rejected_with_a_hint(wrapper, kind):
    inside = getattr(Doubler("inside"), f"with_{kind}_fn")(int)
    with pytest.raises(OptionError, match=rf"{wrapper.__name__}\(handler\)\.with_{kind}_fn\(fn\)"):
        wrapper(inside)


def test_functions_of_the_outer_handler_receive_key_and_example():
    handler = KeyedModelHandler(Doubler("outer")).with_preprocess_fn(
        lambda pair: (pair[0], pair[1] + 1)
    )
    handler = handler.with_postprocess_fn(lambda pair: (pair[0], pair[1].inference))
    assert handler.predict([("a", 1)]) == [("a", 4)]


def test_no_batching_of_the_wrapped_handler_applies():
    inside = Doubler("off").with_no_batching()
    results = run([[("a", 1), ("b", 2)], [("c", 3)]], RunInference(KeyedModelHandler(inside)))
    assert sorted(key for key, _ in results) == ["a", "b", "c"]
    assert sorted(inside.sizes) == [1, 2]


def test_batching_options_of_the_wrapped_handler_apply_to_examples():
    def weight(example):
        return example

    inside = Doubler(
        "weighed",
        min_batch_size=100,
        max_batch_size=100,
        max_batch_weight=5,
        element_size_fn=weight,
    )
    KeyedModelHandler(inside).predict([("a", 3), ("b", 2), ("c", 4)])
    assert inside.batches["weighed"] == [[3, 2], [4]]


def test_a_keyed_handler_can_be_pickled():
    handler = pickle.loads(pickle.dumps(KeyedModelHandler(Doubler("pickled"))))
    assert handler.predict([("a", 1)]) == [("a", (1, 2, "pickled"))]


def test_too_few_results_raise_instead_of_losing_keys():
    handler = KeyedModelHandler(FunctionHandler(lambda batch: batch[:1], min_batch_size=3))
    with pytest.raises(ResultMismatchError, match="returned 1 result for a batch of 3"):
        handler.predict([("a", 1), ("b", 2), ("c", 3)])


def test_maybe_keyed_accepts_elements_with_or_without_keys():
    handler = MaybeKeyedModelHandler(Doubler("maybe"))
    assert handler.predict([1]) == [(1, 2, "maybe")]
    assert handler.predict([("a", 1)]) == [("a", (1, 2, "maybe"))]


def test_maybe_keyed_rejects_a_mixture():
    with pytest.raises(ValueError, match="1 of 2 elements of a batch are tuples"):
        MaybeKeyedModelHandler(Doubler("mixed", min_batch_size=2)).predict([1, ("a", 1)])


def test_an_unknown_keyword_is_rejected():
    with pytest.raises(TypeError, match="has no option 'unkeyd'. Did you mean 'unkeyed'"):
        KeyedModelHandler(unkeyd=Doubler("typo"))
