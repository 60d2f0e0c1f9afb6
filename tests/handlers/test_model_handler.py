"""A handler is a value, rejects unknown options, and runs without a pipeline."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import pickle

import pandas as pd
import pytest

from common import Doubler, FunctionHandler
from runinference import ModelHandler
from runinference.errors import ElementError, OptionError, ResultMismatchError, UnknownOptionError
from runinference.sklearn_inference import SklearnModelHandlerNumpy


def plus_one(x):
    return x + 1


def times_ten(x):
    return x * 10


def test_preprocessing_applies_the_last_added_first():
    handler = (
        FunctionHandler(lambda batch: batch)
        .with_preprocess_fn(plus_one)
        .with_preprocess_fn(times_ten)
    )
    assert handler.predict([1, 2]) == [11, 21]


def test_postprocessing_applies_the_first_added_first():
    handler = (
        FunctionHandler(lambda batch: batch)
        .with_postprocess_fn(plus_one)
        .with_postprocess_fn(times_ten)
    )
    assert handler.predict([1, 2]) == [20, 30]


def test_with_methods_return_a_copy_and_leave_the_handler_unchanged():
    handler = Doubler("value")
    changed = handler.with_preprocess_fn(plus_one).with_no_batching()
    assert handler.get_preprocess_fns() == []
    assert not handler.should_skip_batching()
    assert changed.get_preprocess_fns() == [plus_one]
    assert changed.should_skip_batching()
    assert type(changed) is Doubler


def test_with_preprocess_fn_keeps_functions_that_a_subclass_returns():
    class Own(Doubler):
        def get_preprocess_fns(self):
            return [plus_one]

    assert Own("own").with_preprocess_fn(times_ten).get_preprocess_fns() == [times_ten, plus_one]


def test_a_changed_copy_survives_pickling_and_copying():
    handler = Doubler("p").with_postprocess_fn(plus_one).with_no_batching()
    for twin in (pickle.loads(pickle.dumps(handler)), copy.deepcopy(handler)):
        assert twin.get_postprocess_fns() == [plus_one]
        assert twin.should_skip_batching()


def test_a_subclass_does_not_have_to_call_the_base_constructor():
    class Silent(ModelHandler):
        def __init__(self):
            pass

        def load_model(self):
            return None

        def run_inference(self, batch, model, inference_args=None):
            return batch

    handler = Silent()
    assert handler.with_preprocess_fn(plus_one).predict([1, 2]) == [2, 3]
    assert handler.batch_elements_kwargs() == {}
    assert handler.model_copies() == 1
    assert not handler.share_model_across_processes()


def test_a_dataclass_can_be_a_handler():
    @dataclasses.dataclass
    class Adder(ModelHandler):
        term: int

        def load_model(self):
            return self.term

        def run_inference(self, batch, model, inference_args=None):
            return [x + model for x in batch]

    assert Adder(term=3).predict([1]) == [4]
    with pytest.raises(UnknownOptionError, match="Did you mean 'term'"):
        Adder(trem=3)


@pytest.mark.parametrize("handler", [ModelHandler, Doubler, SklearnModelHandlerNumpy])
def test_an_unknown_keyword_raises_with_the_closest_option(handler):
    with pytest.raises(TypeError, match="'max_batchsize'. Did you mean 'max_batch_size'"):
        handler(max_batchsize=3)


def test_a_misspelled_required_argument_raises_with_the_closest_option():
    with pytest.raises(TypeError, match="'model_url'. Did you mean 'model_uri'"):
        SklearnModelHandlerNumpy(model_url="x")


def test_the_signature_lists_the_shared_options():
    parameters = inspect.signature(SklearnModelHandlerNumpy).parameters
    assert {"model_uri", "min_batch_size", "env_vars", "large_model"} <= set(parameters)
    assert "options" not in parameters


def test_conflicting_options_raise_at_construction():
    with pytest.raises(OptionError, match="min_batch_size"):
        Doubler(min_batch_size=9, max_batch_size=3)


def test_batching_options_have_beams_names():
    handler = Doubler(max_batch_size=3, batch_length_fn=len, batch_bucket_boundaries=[4])
    assert handler.batch_elements_kwargs() == {
        "max_batch_size": 3,
        "length_fn": len,
        "bucket_boundaries": [4],
    }


def test_environment_variables_are_set_before_the_model_is_loaded(monkeypatch):
    monkeypatch.delenv("TINY_MODEL", raising=False)

    class Reader(ModelHandler):
        def load_model(self):
            return os.environ["TINY_MODEL"]

        def run_inference(self, batch, model, inference_args=None):
            return [model for _ in batch]

    try:
        assert Reader(env_vars={"TINY_MODEL": "set"}).predict([1]) == ["set"]
    finally:
        os.environ.pop("TINY_MODEL", None)


def test_predict_batches_like_the_transform_and_keeps_the_order():
    handler = Doubler(
        "order",
        min_batch_size=2,
        max_batch_size=2,
        batch_length_fn=int,
        batch_bucket_boundaries=[5],
    )
    results = handler.predict([1, 9, 2, 8, 3])
    assert [result.inference for result in results] == [2, 18, 4, 16, 6]
    assert sorted(handler.sizes) == [1, 2, 2]


def test_predict_loads_the_model_once_per_handler():
    handler = Doubler("once")
    handler.predict([1])
    handler.predict([2])
    assert Doubler.loads["once"] == 1


def test_predict_accepts_batches_if_batching_is_off():
    handler = Doubler("prebatched").with_no_batching()
    assert [result.inference for result in handler.predict([[1, 2], [3]])] == [2, 4, 6]
    assert handler.sizes == [2, 1]


def test_predict_raises_for_a_result_of_another_length():
    with pytest.raises(ResultMismatchError, match="returned 1 result for a batch of 3"):
        FunctionHandler(lambda batch: [0], min_batch_size=3).predict([1, 2, 3])


def test_each_call_gets_its_own_inference_args():
    class Greedy(ModelHandler):
        def load_model(self):
            return None

        def run_inference(self, batch, model, inference_args=None):
            return [inference_args.pop("left") for _ in batch]

    assert Greedy(max_batch_size=1).predict([1, 2, 3], {"left": 7}) == [7, 7, 7]


def test_the_error_names_the_method_that_a_subclass_must_define():
    with pytest.raises(NotImplementedError, match=r"must define load_model\(\)"):
        ModelHandler().predict([1])


@pytest.mark.parametrize("single", ["text", b"bytes", {"a": 1}, pd.DataFrame({"a": [1]}), 5, None])
def test_predict_rejects_a_single_example(single):
    """Its characters, keys or columns would otherwise be taken for examples."""
    with pytest.raises(ElementError, match=r"To fix this, pass a list: predict\(\[example\]\)"):
        Doubler("single").predict(single)


@pytest.mark.parametrize("arguments", [["a"], "a", {1: 2}])
def test_predict_rejects_arguments_that_are_no_dictionary(arguments):
    with pytest.raises(OptionError, match="inference_args"):
        Doubler("arguments").predict([1], arguments)


def test_an_argument_that_the_model_does_not_take_is_named():
    class Scaling(Doubler):
        def run_inference(self, batch, model, inference_args=None):
            return [self.scale(x, **inference_args) for x in batch]

        def scale(self, x, factor=1):
            if factor is None:
                self.scale(x, other=1)
            return x * factor

    handler = Scaling("scaling")
    assert handler.predict([2], {"factor": 3}) == [6]
    with pytest.raises(
        UnknownOptionError, match="no argument 'fctor'.*remove it from inference_args"
    ):
        handler.predict([2], {"fctor": 3})
    with pytest.raises(TypeError, match="other") as raised:  # a bug of the handler
        handler.predict([2], {"factor": None})
    assert not isinstance(raised.value, UnknownOptionError)
