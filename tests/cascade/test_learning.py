"""``learn_cascade`` finds the lowest threshold with the requested agreement, or none."""

from __future__ import annotations

import logging
import math
import pickle
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from common import FunctionHandler
from runinference import KeyedModelHandler, PredictionResult, samples
from runinference.cascade import (
    CascadeThreshold,
    equal_predictions,
    learn_cascade,
    max_probability,
    probability_margin,
    same_class,
)
from runinference.errors import ElementError, ModelNotFoundError, OptionError
from runinference.remote.openai_protocol import Generation
from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy


def predict(function, **options):
    """Return a handler that applies a function to each element."""
    return FunctionHandler(
        lambda batch: [PredictionResult(each, function(each)) for each in batch], **options
    )


#: The models agree on numbers of at least 300 of 1,000. The number is also the confidence.
CHEAP = predict(lambda n: n)
EXPENSIVE = predict(lambda n: n if n >= 300 else -n)


def learn(sample=range(1000), cheap=CHEAP, expensive=EXPENSIVE, **options):
    return learn_cascade(cheap, expensive, sample, **{"confidence": float, **options})


def test_the_threshold_is_above_elements_on_which_the_models_differ():
    learned = learn(agreement=0.95)
    assert 240 < learned.threshold < 400
    assert 0.95 <= learned.agreement_lower_bound <= learned.expected_agreement
    assert learned.expected_savings == pytest.approx((1000 - learned.threshold) / 1000, abs=0.05)
    assert learned.n_tested == 800
    assert re.fullmatch(
        r"The cheap model answers above a confidence of \d+\.\n"
        r"Expected savings: \d\d\.\d% of the elements\.\n"
        r"Expected agreement: \d+\.\d%, at least 9\d\.\d%\.",
        str(learned),
    )


def test_a_model_that_always_agrees_answers_all_elements():
    learned = learn(expensive=CHEAP)
    assert learned.threshold == -math.inf
    assert learned.expected_savings == 1
    assert "with any confidence" in str(learned)


@pytest.mark.parametrize("sample", [range(100), range(1000)])
def test_if_no_threshold_reaches_the_agreement_the_expensive_model_answers_everything(sample):
    learned = learn(sample, expensive=predict(lambda n: n if n % 5 else -n))
    assert learned.threshold == math.inf
    assert learned.expected_agreement is None is learned.agreement_lower_bound
    assert learned.expected_savings == 0
    assert str(learned).startswith("No threshold reaches an agreement of 95.0%")


def test_the_expensive_model_is_called_once_for_four_fifths_of_the_sample():
    calls = []
    learn(expensive=predict(lambda n: calls.append(n) or (n if n >= 300 else -n)))
    assert len(calls) == len(set(calls)) == 800


def test_equal_seeds_have_equal_results():
    assert learn(seed=1) == learn(seed=1) != learn(seed=2)


def test_a_learned_threshold_can_be_pickled():
    learned = learn(agreement=0.9)
    assert pickle.loads(pickle.dumps(learned)) == learned


def test_an_agreement_function_gets_the_cheap_and_the_expensive_prediction():
    learned = learn(
        cheap=predict(lambda n: [float(n % 3 == each) for each in range(3)]),
        expensive=predict(lambda n: "abc"[n % 3]),
        confidence=max,
        agrees=lambda cheap, expensive: "abc"[cheap.index(max(cheap))] == expensive,
    )
    assert learned.threshold == -math.inf


def test_elements_can_have_keys_and_handlers_can_have_functions():
    plain = learn()
    cheap = KeyedModelHandler(CHEAP).with_preprocess_fn(lambda pair: (pair[0], pair[1] - 1))
    expensive = KeyedModelHandler(EXPENSIVE).with_postprocess_fn(
        lambda pair: (pair[0], pair[1].inference - 1)
    )
    learned = learn([("key", n) for n in range(1000)], cheap, expensive)
    assert learned.threshold == plain.threshold - 1
    assert learned.expected_agreement == plain.expected_agreement


def test_inference_args_are_passed_to_each_handler():
    class Scaled(FunctionHandler):
        def run_inference(self, batch, model, inference_args=None):
            return [n * inference_args["scale"] for n in batch]

    scaled = Scaled(None)
    learned = learn(
        cheap=scaled,
        expensive=scaled,
        agrees=lambda a, b: b == 2 * a,
        cheap_args={"inference_args": {"scale": 1}},
        expensive_args={"inference_args": {"scale": 2}},
    )
    assert learned.threshold == -math.inf


def test_a_model_that_modifies_its_input_does_not_change_that_of_the_other():
    def negate(array):
        array *= -1
        return PredictionResult(array, float(array[0]))

    cheap = FunctionHandler(lambda batch: [negate(each) for each in batch])
    sample = [np.array([float(n)]) for n in range(100)]
    seen = []
    learn(sample, cheap, predict(lambda array: seen.append(float(array[0])) or array[0]))
    assert min(seen) >= 0
    assert [each[0] for each in sample] == list(range(100))


def test_failing_elements_are_counted_and_do_not_count_as_agreement(caplog):
    def fail_on(multiple, function):
        def run(n):
            if n % multiple == 0:
                raise ValueError(f"cannot read {n}")
            return function(n)

        return predict(run)

    with caplog.at_level(logging.WARNING):
        learned = learn(cheap=fail_on(50, lambda n: n), expensive=fail_on(7, lambda n: n))
    assert "The cheap model failed on 20 of 1000 elements of the sample" in caplog.text
    assert re.search(
        r"The expensive model failed on \d+ of 78\d elements.*cannot read", caplog.text
    )
    assert learned.n_failed > 20 + 100
    assert learned.threshold == math.inf  # one in seven has no answer of the expensive model


def test_confidence_that_is_nan_is_never_accepted():
    learned = learn(
        expensive=predict(lambda n: n if n % 4 else -n),
        confidence=lambda n: n if n % 4 else math.nan,
    )
    assert learned.threshold == -math.inf
    assert learned.expected_savings == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agreement": 1.0}, "agreement must be greater than 0 and less than 1, but is 1.0"),
        ({"agreement": 95}, "agreement must be greater than 0 and less than 1"),
        ({"agreement": "95 %"}, "agreement must be a number"),
        ({"agreement": math.nan}, "agreement must be a finite number"),
        ({"error_probability": 0}, "error_probability must be greater than 0"),
        ({"confidence": 0.9}, "confidence must be a function"),
        ({"agrees": "equal"}, "agrees must be a function"),
        ({"cheap_args": ["a"]}, "cheap_args must be a dictionary"),
        ({"cheap": FunctionHandler(list).with_no_batching()}, "cheap are already batches"),
        ({"expensive": "model"}, "expensive takes a model handler"),
        ({"sample": "text"}, "sample must be a list of elements"),
        ({"sample": pa.table({"a": [1]})}, "sample must be a list of elements"),
        ({"sample": []}, "has 0 elements"),
        ({"sample": range(72)}, "has 72 elements. 58 of them .* pass at least 74 elements"),
        ({"expensive": predict(lambda n: 3)}, "contains only one class"),
        (
            {
                "expensive": predict(lambda n: [n + 1.0, 0.5]),
                "agrees": same_class,
                "confidence": int,
            },
            "contains only one class",
        ),
    ],
)
def test_options_out_of_range_raise_an_error(options, message):
    with pytest.raises(OptionError, match=message):
        learn(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": str}, r"returned '\d+', which isn't a number"),
        ({"confidence": lambda n: None}, "returned None"),
        ({"confidence": lambda n: np.ones(2)}, "which isn't a number"),
        ({"confidence": max_probability}, "must be a vector of 1 or more numbers"),
        ({"agrees": lambda a, b: None}, "returned None, which is neither true nor false"),
        ({"agrees": lambda a, b: np.array([True, False])}, "neither true nor false"),
        ({"cheap": predict(lambda n: 1 / 0)}, "cheap model failed on 64 of 64 .*ZeroDivision"),
    ],
)
def test_functions_with_invalid_return_values_raise_an_error(options, message):
    with pytest.raises(ElementError, match=message):
        learn(**options)


def test_a_model_that_cannot_be_loaded_raises_its_own_error():
    with pytest.raises(ModelNotFoundError, match="missing.pickle"):
        learn(cheap=SklearnModelHandlerNumpy("missing.pickle"))


def test_digits_reach_the_requested_agreement_on_images_outside_of_the_sample():
    images, _ = samples.held_out_digits()

    def probabilities(model, batch, inference_args=None):
        return model.predict_proba(np.stack(batch))

    cheap = SklearnModelHandlerNumpy(samples.digits_classifier(), inference_fn=probabilities)
    expensive = SklearnModelHandlerNumpy(samples.digits_forest(), ModelFileType.JOBLIB)
    learned = learn(
        images[:500],
        cheap,
        expensive,
        confidence=probability_margin,
        agrees=same_class,
        agreement=0.9,
    )
    rest = [
        (learned.accepts(probability_margin(one)), same_class(one, other))
        for one, other in zip(
            cheap.predict(images[500:]), expensive.predict(images[500:]), strict=True
        )
    ]
    accepted = [agrees for accepts, agrees in rest if accepts]
    assert np.mean(accepted) > 0.9
    assert len(accepted) > 150


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (np.int64(3), 3, True),
        (np.array([1, 2]), np.array([1.0, 2.0]), True),
        (np.array([1, 2]), np.array([1, 2, 3]), False),
        ({"a": np.ones(2)}, {"a": [1, 1]}, True),
        ({"a": 1}, {"b": 1}, False),
        (("x", 0.5), ["x", 0.5], True),
        (Generation("Yes ", "stop", [], None), Generation("Yes", "length", [], {}), True),
        (Generation("Yes", "stop", [], None), "No", False),
        (float("nan"), float("nan"), False),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}), True),
        (PredictionResult("a", 1, "m"), PredictionResult("b", 1, "n"), True),
    ],
)
def test_predictions_are_equal_if_their_values_are(one, other, equal):
    assert equal_predictions(one, other) is equal


def test_tensors_are_compared_by_value_and_by_class():
    tensor = torch.tensor([0.1, 0.9], requires_grad=True)
    assert equal_predictions(tensor, [0.1, 0.9]) is False  # float32
    assert same_class(tensor, np.int64(1))
    assert max_probability(tensor) == pytest.approx(0.9)


def test_the_margin_of_probabilities_with_nan_is_nan():
    assert math.isnan(probability_margin([0.5, math.nan, 0.2]))


@pytest.mark.parametrize("threshold", ["0.9", math.nan, True, None])
def test_a_threshold_that_is_not_a_number_raises_an_error(threshold):
    with pytest.raises(OptionError, match="threshold must be a number"):
        CascadeThreshold(threshold, confidence=max)
