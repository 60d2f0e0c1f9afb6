"""``Cascade`` answers each element once, checks some of the cheap answers, and counts both."""

from __future__ import annotations

import logging
import math

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.transforms import window

from common import RUNNER, CollectElements, Doubler, FunctionHandler, run
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    MaybeKeyedModelHandler,
    PredictionResult,
)
from runinference.cascade import (
    Cascade,
    CascadeThreshold,
    equal_predictions,
    learn_cascade,
    same_class,
)
from runinference.errors import ElementError, OptionError, UnknownOptionError
from runinference.openai_inference import OpenAIChatModelHandler
from runinference.samples import servers
from runinference.samples.local_server import ErrorResponse
from runinference.sklearn_inference import SklearnModelHandlerNumpy


def predict(function, model_id=None, **options):
    """Return a handler that applies a function to each element."""
    return FunctionHandler(
        lambda batch: [PredictionResult(each, function(each), model_id) for each in batch],
        **options,
    )


#: The cheap model returns the number, which is also its confidence. The models agree on numbers above 0.
CHEAP_WORDS = predict(str)
CHEAP, EXPENSIVE = predict(float, "small"), predict(abs, "large")
ABOVE_5 = CascadeThreshold(5, confidence=float)


def run_with_metrics(elements, transform, split=False):
    """Return the results of a transform, the lists of its dead letters, and its metrics."""
    collected, letters = [], []
    pipeline = beam.Pipeline(runner=RUNNER)
    output = pipeline | beam.Create(elements, reshuffle=False) | transform
    if split:
        output, dlq = output
        for number, name in enumerate(dlq._fields):
            for kind, pcolls in dlq[number]._asdict().items():
                for i, pcoll in enumerate([pcolls] if kind == "failed_inferences" else pcolls):
                    label = f"{name} {kind} {i}"
                    tagged = pcoll | f"tag {label}" >> beam.Map(lambda each, x: (x, each), label)
                    tagged | f"collect {label}" >> beam.ParDo(CollectElements(letters))
    output | "collect" >> beam.ParDo(CollectElements(collected))
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query()
    metrics = {
        each.key.metric.name: each.committed
        for kind in ("counters", "distributions", "gauges")
        for each in found[kind]
        if each.key.metric.namespace == "cascade"
    }
    letters = [(label, letter[0], letter[1][0]) for label, letter in CollectElements.take(letters)]
    return CollectElements.take(collected), letters, metrics


def test_each_element_is_answered_by_one_model_and_results_name_it():
    results = run([3, 5, 6, -7], Cascade(CHEAP, EXPENSIVE, ABOVE_5, check_fraction=1))
    assert sorted(results) == [(-7, 7, "large"), (3, 3, "large"), (5, 5, "large"), (6, 6, "small")]


def test_results_without_a_model_id_get_the_id_cheap_or_expensive():
    results = run([3, 6], Cascade(predict(float), predict(abs), ABOVE_5))
    assert sorted(results) == [(3, 3, "expensive"), (6, 6, "cheap")]


@pytest.mark.parametrize("confidence", [math.nan, -math.inf])
def test_elements_with_unknown_confidence_go_to_the_expensive_model(confidence):
    threshold = CascadeThreshold(-math.inf, confidence=lambda prediction: confidence)
    [result] = run([9], Cascade(CHEAP, EXPENSIVE, threshold))
    assert result.model_id == "large"


def test_without_a_threshold_the_cheap_model_is_not_called():
    def fail(number):
        raise AssertionError(number)

    threshold = CascadeThreshold(math.inf, confidence=float)
    cascade = Cascade(predict(fail), EXPENSIVE, threshold)
    results, letters, metrics = run_with_metrics([1, 2], cascade.with_exception_handling(), True)
    assert sorted(results) == [(1, 1, "large"), (2, 2, "large")]
    assert letters == []
    assert metrics["cascade_expensive"] == 2
    assert metrics["cascade_observed_savings_percent"].mean == 0


def test_metrics_count_answers_checks_agreement_and_savings():
    threshold = CascadeThreshold(
        5,
        confidence=float,
        agrees=lambda cheap, expensive: cheap % 2 == 0,
        agreement=0.4,
        expected_agreement=0.529,
        expected_savings=0.8,
    )
    cascade = Cascade(CHEAP, EXPENSIVE, threshold, check_fraction=0.25)
    results, _, metrics = run_with_metrics(range(1006), cascade)
    assert sorted(result.example for result in results) == list(range(1006))
    n_checked = metrics.pop("cascade_checked")
    assert 200 < n_checked < 300
    assert metrics["cascade_cheap"] == 1000
    assert metrics["cascade_expensive"] == 6
    assert metrics["cascade_agreed"] == pytest.approx(n_checked / 2, abs=40)
    observed = metrics["cascade_observed_agreement_percent"]
    assert (observed.count, observed.sum) == (n_checked, 100 * metrics["cascade_agreed"])
    savings = metrics["cascade_observed_savings_percent"]
    assert savings.mean == pytest.approx(100 * (1000 - n_checked) / 1006)
    assert metrics["cascade_expected_agreement_percent"].value == 52
    assert metrics["cascade_expected_savings_percent"].value == 60
    assert "cascade_alerts" not in metrics


def checked(elements, **options):
    """Return the elements that the expensive model gets although the cheap one answers."""
    doubler = Doubler("checks")
    threshold = CascadeThreshold(-1, confidence=float)
    run(elements, Cascade(CHEAP, doubler, threshold, **options))
    return sorted(n for batch in doubler.batches["checks"] for n in batch)


def test_a_retry_checks_the_same_elements_and_another_seed_checks_others():
    first = checked(range(200), check_fraction=0.2)
    assert first == checked(range(200)[::-1], check_fraction=0.2)
    assert 20 < len(first) < 65
    assert first != checked(range(200), check_fraction=0.2, seed=1)


def test_a_retry_checks_the_same_tensors():
    first, second = (
        checked([torch.full((2,), n)[:1] for n in range(64)], check_fraction=0.5) for _ in range(2)
    )
    assert 10 < len(first) < 54
    assert first == second


@pytest.mark.parametrize(("fraction", "n"), [(0, 0), (1, 50)])
def test_none_or_all_of_the_cheap_answers_are_checked(fraction, n):
    assert len(checked(range(50), check_fraction=fraction)) == n


def test_an_agreement_far_below_the_requested_one_logs_a_warning(caplog):
    threshold = CascadeThreshold(-1, confidence=float, agreement=0.95)
    wrong = predict(lambda n: n if n % 4 else -1)
    with caplog.at_level(logging.WARNING, logger="runinference"):
        cascade = Cascade(CHEAP, wrong, threshold, check_fraction=1)
        results, _, metrics = run_with_metrics(range(64), cascade)
    assert metrics["cascade_alerts"] >= 1
    assert "agree on 48 of the last 64 checked elements (75.0%)" in caplog.text
    assert "significantly below the requested 95.0%" in caplog.text
    assert {result.model_id for result in results} == {"small"}  # checks don't change results


def test_an_agreement_at_the_requested_rate_logs_no_warning(caplog):
    threshold = CascadeThreshold(-1, confidence=float, agreement=0.9)
    wrong = predict(lambda n: n if n % 10 else -1)
    with caplog.at_level(logging.WARNING, logger="runinference"):
        _, _, metrics = run_with_metrics(
            range(1_100), Cascade(CHEAP, wrong, threshold, check_fraction=1)
        )
    assert "cascade_alerts" not in metrics
    assert "significantly" not in caplog.text


def test_results_keep_windows_timestamps_and_keys():
    caught = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        _ = (
            pipeline
            | beam.Create([(str(n), n) for n in range(20)])
            | beam.Map(lambda pair: window.TimestampedValue(pair, pair[1]))
            | beam.WindowInto(window.FixedWindows(5))
            | Cascade(KeyedModelHandler(CHEAP), KeyedModelHandler(EXPENSIVE), ABOVE_5)
            | beam.ParDo(CollectElements(caught))
        )
    CollectElements.take(caught)
    assert sorted(result.example for (_, result), _, _ in caught) == list(range(20))
    for (key, result), timestamp, its_window in caught:
        assert key == str(result.example)
        assert timestamp == result.example
        assert its_window.start == result.example // 5 * 5


def test_elements_wait_for_batches_across_bundles():
    options = {"max_batch_duration_secs": 0.01, "min_batch_size": 2, "max_batch_size": 4}
    cheap, expensive = predict(float, "small", **options), predict(abs, "large", **options)
    results = run(range(12), Cascade(cheap, expensive, ABOVE_5, check_fraction=0.5))
    assert sorted(result.example for result in results) == list(range(12))
    assert all((result.model_id == "small") == (result.example > 5) for result in results)


def test_per_key_models_get_the_elements_of_their_keys():
    cheap = KeyedModelHandler(
        [KeyModelMapping(["a"], CHEAP), KeyModelMapping(["b"], predict(lambda n: n + 10, "b"))]
    )
    expensive = MaybeKeyedModelHandler(EXPENSIVE)
    results = run([("a", 1), ("a", 7), ("b", 1), ("b", -9)], Cascade(cheap, expensive, ABOVE_5))
    assert sorted(results) == [
        ("a", (1, 1, "large")),
        ("a", (7, 7, "small")),
        ("b", (-9, 9, "large")),
        ("b", (1, 11, "b")),
    ]


def test_a_subclass_of_keyed_handlers_gets_the_keys_themselves():
    class Suffixed(KeyedModelHandler):
        def run_inference(self, batch, model, inference_args=None):
            pairs = super().run_inference(batch, model, inference_args)
            return [(key.upper(), result) for key, result in pairs]

    cascade = Cascade(Suffixed(CHEAP), KeyedModelHandler(EXPENSIVE), ABOVE_5)
    results = run([("a", 1), ("b", 7)], cascade)
    assert sorted(results) == [("B", (7, 7, "small")), ("a", (1, 1, "large"))]


def test_each_handler_applies_its_functions_to_the_original_element():
    cheap = CHEAP.with_preprocess_fn(lambda text: int(text)).with_postprocess_fn(
        lambda result: result.inference
    )
    expensive = EXPENSIVE.with_preprocess_fn(len).with_postprocess_fn(
        lambda result: ("length", result.inference)
    )
    results = run(["3", "100", "6"], Cascade(cheap, expensive, ABOVE_5, check_fraction=1))
    assert sorted(results, key=str) == [("length", 1), 100.0, 6.0]


def test_a_model_that_modifies_its_input_does_not_change_that_of_the_other():
    def negate(array):
        array *= -1
        return float(array[0])

    cascade = Cascade(predict(negate), predict(lambda array: float(array[0])), ABOVE_5)
    [result] = run([np.array([3.0])], cascade)
    assert result.inference == 3


def test_rows_keep_their_schema(tmp_path):
    from sklearn.linear_model import LogisticRegression

    path = tmp_path / "model.pickle"
    import pickle

    model = LogisticRegression().fit([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1])
    path.write_bytes(pickle.dumps(model))
    handler = SklearnModelHandlerNumpy(str(path))
    options = {"columns": ["x"], "output": {"label": int}, "probabilities": {1: "p"}}
    threshold = CascadeThreshold(
        0.9, confidence=lambda row: max(row.p, 1 - row.p), agrees=lambda a, b: a.label == b.label
    )
    rows = [beam.Row(id=1, x=0.0), beam.Row(id=2, x=2.6), beam.Row(id=3, x=5.0)]
    both = {"cheap_args": options, "expensive_args": options}
    cascade = Cascade(handler, handler, threshold, model_column="model", **both)
    collected = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        results = pipeline | beam.Create(rows) | cascade
        names = [name for name, _ in results.element_type._fields]
        assert names == ["id", "x", "label", "p", "model"]
        results | beam.Reshuffle() | beam.ParDo(CollectElements(collected))
    found = CollectElements.take(collected)
    assert sorted((row.id, row.label, row.model) for row in found) == [
        *((1, 0, "cheap"), (2, 1, "expensive"), (3, 1, "cheap"))
    ]

    keyed = KeyedModelHandler(handler)
    pairs = [("key", row) for row in rows]
    results = run(pairs, Cascade(keyed, keyed, threshold, model_column="model", **both))
    assert {(key, row.id, row.model) for key, row in results} == {
        *(("key", 1, "cheap"), ("key", 2, "expensive"), ("key", 3, "cheap"))
    }
    with pytest.raises(OptionError, match="Results already have a column 'x'"):
        run(rows, Cascade(handler, handler, threshold, model_column="x", **both))


def fail_on(*numbers):
    def apply(number):
        if number in numbers:
            raise ValueError(f"cannot read {number}")
        return number

    return apply


def test_dead_letters_of_both_steps_are_separate():
    cheap = (
        predict(fail_on(7))
        .with_preprocess_fn(fail_on(8))
        .with_postprocess_fn(lambda result: fail_on(9)(result.inference))
    )
    expensive = predict(fail_on(1)).with_preprocess_fn(fail_on(2))
    threshold = CascadeThreshold(5, confidence=lambda n: fail_on(10)(n))
    cascade = Cascade(cheap, expensive, threshold).with_exception_handling()
    results, letters, _ = run_with_metrics([1, 2, 3, 6, 7, 8, 9, 10], cascade, split=True)
    assert sorted(map(str, results)) == [
        "6",
        "PredictionResult(example=3, inference=3, model_id='expensive')",
    ]
    assert sorted(letters, key=str) == [
        ("cheap failed_inferences 0", 7, ValueError),
        ("cheap failed_postprocessing 0", (9, 9, None), ValueError),
        ("cheap failed_postprocessing 1", 10, ValueError),
        ("cheap failed_preprocessing 0", 8, ValueError),
        ("expensive failed_inferences 0", 1, ValueError),
        ("expensive failed_preprocessing 0", 2, ValueError),
    ]


def test_dead_letters_have_the_keys_of_their_elements():
    cascade = Cascade(KeyedModelHandler(predict(fail_on(7))), KeyedModelHandler(CHEAP), ABOVE_5)
    elements = [("a", 7), ("b", 6), "no key"]
    results, letters, _ = run_with_metrics(elements, cascade.with_exception_handling(), True)
    assert results == [("b", (6, 6, "cheap"))]
    assert [(label, element) for label, element, _ in letters] == [
        ("cheap failed_inferences 0", "no key"),
        ("cheap failed_inferences 0", ("a", 7)),
    ] or [(label, element) for label, element, _ in letters] == [
        ("cheap failed_inferences 0", ("a", 7)),
        ("cheap failed_inferences 0", "no key"),
    ]


def test_a_failed_check_is_counted_and_keeps_the_answer():
    threshold = CascadeThreshold(
        -1, confidence=float, agrees=lambda a, b: fail_on(4)(a) == b, agreement=0.9
    )
    cascade = Cascade(CHEAP, predict(fail_on(3)), threshold, check_fraction=1)
    results, letters, metrics = run_with_metrics(
        range(6), cascade.with_exception_handling(), split=True
    )
    assert sorted(result.example for result in results) == list(range(6))
    assert letters == []
    assert metrics["cascade_failed_checks"] == 2
    assert metrics["cascade_checked"] == metrics["cascade_agreed"] == 4


def test_without_exception_handling_an_error_fails_the_pipeline():
    with pytest.raises(Exception, match="cannot read 7"):
        run([7], Cascade(predict(fail_on(7)), CHEAP, ABOVE_5))
    with pytest.raises(ElementError, match="returned 'x', which isn't a number"):
        run([7], Cascade(predict(lambda n: "x"), CHEAP, CascadeThreshold(5, confidence=str)))


def test_a_request_that_fails_while_learning_sends_no_other_again(caplog):
    caplog.set_level("WARNING")
    requests = []

    def answer(path, headers, body):
        word = body["messages"][-1]["content"]
        requests.append(word)
        if word == "word 13":
            raise ErrorResponse(400, {"error": {"message": "invalid"}})
        text = {"message": {"content": word}, "finish_reason": "stop"}
        return {"choices": [text]}

    words = [f"word {n}" for n in range(80)]
    with servers.serving(answer) as url:
        chat = OpenAIChatModelHandler(url, "any", api_key_env=None)
        learned = learn_cascade(chat, CHEAP_WORDS, words, confidence=lambda answer: 1)
    assert sorted(requests) == sorted(words)
    assert learned.n_failed == 1


def test_a_cascade_of_language_models_answers_all_prompts():
    """The sample server answers in capitals. The cheap model is sure about short prompts."""
    prompts = [" ".join(["word"] * (1 + n % 8)) + f" {n}" for n in range(96)]
    with servers.llm() as url:
        cheap = OpenAIChatModelHandler(url, "shout", api_key_env=None).with_preprocess_fn(str.lower)
        expensive = OpenAIChatModelHandler(url, "shout", api_key_env=None)
        threshold = learn_cascade(
            cheap, expensive, prompts, confidence=lambda answer: -len(answer.text.split())
        )
        assert threshold.expected_agreement == 1
        cascade = Cascade(cheap, expensive, threshold, check_fraction=0.5)
        results, _, metrics = run_with_metrics(prompts, cascade)
    assert sorted(r.inference.text for r in results) == sorted(map(str.upper, prompts))
    assert metrics["cascade_agreed"] == metrics["cascade_checked"] > 20


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0.9}, OptionError, "threshold must be a CascadeThreshold, but is 0.9"),
        ({"check_fraction": 1.1}, OptionError, "check_fraction must be from 0 to 1"),
        ({"check_fraction": -0.1}, OptionError, "check_fraction must be at least 0"),
        ({"check_fraction": math.nan}, OptionError, "check_fraction must be a finite number"),
        ({"cheap": KeyedModelHandler}, OptionError, "cheap got the class KeyedModelHandler"),
        ({"expensive": CHEAP.with_no_batching()}, OptionError, "expensive are already batches"),
        ({"expensive_args": []}, OptionError, "expensive_args must be a dictionary"),
        ({"metrics_namespace": ""}, OptionError, "metrics_namespace must be a non-empty string"),
        ({"model_column": "model"}, OptionError, "model_column is for rows"),
        ({"seed": -1}, OptionError, "seed must be at least 0"),
        ({"check_fracton": 0.1}, UnknownOptionError, "Did you mean 'check_fraction'"),
    ],
)
def test_invalid_options_raise_an_error(options, error, message):
    arguments = {"cheap": CHEAP, "expensive": EXPENSIVE, "threshold": ABOVE_5, **options}
    with pytest.raises(error, match=message):
        Cascade(**arguments)


def test_misspelled_arguments_of_a_step_raise_an_error():
    with pytest.raises(UnknownOptionError, match="Did you mean 'inference_args'"):
        Cascade(CHEAP, EXPENSIVE, ABOVE_5, cheap_args={"inference_arg": {}})


def test_exception_handling_checks_its_options():
    with pytest.raises(OptionError, match="timeout must be greater than 0"):
        Cascade(CHEAP, EXPENSIVE, ABOVE_5).with_exception_handling(timeout=0)


def test_defaults_compare_predictions_and_classes():
    assert ABOVE_5.agrees is equal_predictions
    assert same_class([0.4, 0.6], np.array([0.1, 0.9]))
