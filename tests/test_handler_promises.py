"""Tests that every handler must pass, each with a small real model of its framework."""

from __future__ import annotations

import copy
import importlib
from contextlib import nullcontext
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from common import RUNNER, CollectElements, overlapping, run
from handler_cases import (
    FACTORIES,
    LIGHTGBM_FACTORIES,
    SERVER_FACTORIES,
    TENSORFLOW_FACTORIES,
    Case,
    huggingface_embedding,
    huggingface_text,
    keyed,
    remote,
)
from runinference import KeyedModelHandler, PredictionResult, RunInference
from runinference.collate.pytree import leaves_with_path
from runinference.errors import ElementError, OptionError
from runinference.testing import check_handler
from runinference.testing.compare import retained_bytes, same
from serving.workers import Worker

# Tests that don't apply to some handlers: their models take no inference arguments, or can't return dictionaries.
NOT_APPLICABLE = {
    "test_inference_args_reach_the_model": (
        *SERVER_FACTORIES,
        *TENSORFLOW_FACTORIES,
        huggingface_embedding,
    ),
    "test_splits_a_dictionary_of_batches_into_one_dictionary_per_element": (
        *SERVER_FACTORIES,
        *LIGHTGBM_FACTORIES,
        huggingface_embedding,
    ),
}
# The examples of two texts can be pairs of texts, and those of the remote handler are anything. A wrapped keyed
# handler takes pairs of pairs.
NOT_APPLICABLE["test_keys_without_a_wrapper_and_a_wrapper_without_keys_raise_a_helpful_error"] = (
    huggingface_text,
    huggingface_embedding,
    remote,
    keyed,
)
# Handlers that pad their examples or send requests don't support `whole_results=True`.
WITHOUT_UNSPLIT_RESULTS = (*SERVER_FACTORIES, remote, huggingface_text, huggingface_embedding)


def pytest_generate_tests(metafunc):
    """Run each test with every handler that it applies to."""
    if "case" not in metafunc.fixturenames:
        return
    name = metafunc.function.__name__
    excluded = (
        WITHOUT_UNSPLIT_RESULTS
        if "unsplit_handler" in metafunc.fixturenames
        else NOT_APPLICABLE.get(name, ())
    )
    factories = [factory for factory in FACTORIES if factory not in excluded]
    if name == "test_unsupported_unsplit_results_raise_an_error_that_names_the_option":
        factories = list(WITHOUT_UNSPLIT_RESULTS)
    params = [
        pytest.param(factory, marks=pytest.mark.xdist_group("tensorflow"))
        if factory in TENSORFLOW_FACTORIES
        else factory
        for factory in factories
    ]
    ids = [factory.__name__ for factory in factories]
    metafunc.parametrize("case", params, indirect=True, scope="module", ids=ids)


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    factory = request.param
    case = factory(tmp_path_factory.mktemp(factory.__name__))
    with nullcontext(case) if isinstance(case, Case) else case as opened:
        yield opened


def test_passes_the_conformance_checks(case):
    report = check_handler(
        case.handler,
        case.examples,
        inference_args=case.arguments,
        bad_example=case.invalid,
        updated_path=case.updated_path,
    )
    assert set(report.skipped) == (set() if case.updated_path else {"updates"})


def test_keys_without_a_wrapper_and_a_wrapper_without_keys_raise_a_helpful_error(case):
    pairs = [("key", example) for example in case.examples[:2]]
    with pytest.raises(ElementError, match="KeyedModelHandler|with_preprocess_fn"):
        case.handler.predict(pairs)
    with pytest.raises(ElementError, match="add a key"):
        KeyedModelHandler(case.handler).predict([example for _, example in pairs])


def without_key(result):
    """Return a result without its key."""
    return result[1] if type(result) is tuple else result


def get_inference(result):
    """Return the inference of a result. Some handlers return it without a `PredictionResult`."""
    return getattr(without_key(result), "inference", result)


def test_results_have_the_model_id(case):
    results = case.handler.predict(case.examples)
    assert {without_key(result).model_id for result in results} == {case.model_id}


def test_inference_args_reach_the_model(case):
    default = case.handler.predict(case.examples)
    changed = case.handler.predict(case.examples, case.arguments)
    assert not any(map(same, changed, default))


def test_splits_a_dictionary_of_batches_into_one_dictionary_per_element(case):
    single = [case.dictionary_handler.predict([example])[0] for example in case.examples]
    for result, alone in zip(case.dictionary_handler.predict(case.examples), single, strict=True):
        assert len(dict(get_inference(result))) > 0
        assert same(get_inference(result), get_inference(alone))


def test_num_bytes_is_the_size_of_the_data(case):
    n_bytes = case.handler.get_num_bytes(case.examples)
    assert n_bytes == case.n_bytes if case.n_bytes is not None else n_bytes > 0


def test_only_the_failing_element_becomes_a_dead_letter_and_metrics_are_counted(case):
    good: list[Any] = []
    bad: list[Any] = []
    pipeline = beam.Pipeline(runner=RUNNER)
    elements = [*case.examples[:2], case.invalid, *case.examples[2:]]
    created = pipeline | "mixed" >> beam.Create(elements, reshuffle=False)
    results, failed = created | RunInference(case.handler).with_exception_handling()
    _ = results | "good" >> beam.ParDo(CollectElements(good))
    _ = failed.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    created = pipeline | "valid" >> beam.Create(case.examples, reshuffle=False)
    _ = created | "infer valid" >> RunInference(case.handler)
    run_result = pipeline.run()
    run_result.wait_until_finish()

    results, [(element, (_, message, _))] = CollectElements.take(good), CollectElements.take(bad)
    assert len(results) == len(case.examples)
    assert {without_key(result).model_id for result in results} == {case.model_id}
    assert type(element) is type(case.invalid)
    assert message
    metrics = run_result.metrics().query()
    assert sum_metric(metrics["counters"], "num_inferences") == 2 * len(case.examples)
    n_bytes = sum_metric(metrics["distributions"], "inference_request_batch_byte_size")
    assert n_bytes >= (case.n_bytes or 1)


def test_calls_that_overlap_give_the_same_results_in_the_same_order(case):
    two = {**case.handler.batch_elements_kwargs(), "min_batch_size": 2, "max_batch_size": 2}
    handler = copy.copy(case.handler)
    handler.batch_elements_kwargs = lambda: two
    examples = 3 * case.examples[: len(case.examples) // 2 * 2]
    elements = [*examples[:6], case.invalid, *examples[6:]]
    outcomes = []
    for overlaps in (False, True):
        with overlapping(overlaps):
            worker = Worker(RunInference(handler).with_exception_handling()._config())
            outcomes.append(worker.bundle(*elements))
            worker.do_fn.teardown()
    (separate, dead), (overlapped, also_dead) = outcomes
    assert len(overlapped) == len(separate) == len(examples)
    assert all(map(same, overlapped, separate))
    assert len(also_dead) == len(dead) == 1


def sum_metric(metrics, name):
    """Return the sum of a metric over all steps."""
    committed = [metric.committed for metric in metrics if metric.key.metric.name == name]
    return sum(getattr(value, "sum", value) for value in committed)


def stack_batch(examples):
    """Stack examples into one element, such as an array, a DataFrame, or a list of texts."""
    first = examples[0]
    if isinstance(first, tuple):
        return first[0], stack_batch([example for _, example in examples])
    if isinstance(first, dict):
        return {name: stack_batch([example[name] for example in examples]) for name in first}
    if isinstance(first, pd.DataFrame):
        return pd.concat(examples)
    if scipy.sparse.issparse(first):
        return scipy.sparse.vstack(examples, format="csr")
    if isinstance(first, torch.Tensor):
        return torch.stack(examples)
    if type(first).__module__.startswith("tensorflow"):
        return importlib.import_module("tensorflow").stack(examples)
    return np.stack(examples) if isinstance(first, np.ndarray) else list(examples)


def split_rows(inference, n):
    """Return the rows of an unsplit result. Each row of a dictionary of arrays is a dictionary."""
    if isinstance(inference, dict):
        arrays = {name: value for name, value in inference.items() if np.ndim(value) > 0}
        return [{name: array[i] for name, array in arrays.items()} for i in range(n)]
    return list(inference)


def test_unsupported_unsplit_results_raise_an_error_that_names_the_option(case):
    with pytest.raises(OptionError, match="leave whole_results out|remove whole_results"):
        case.handler.with_no_batching(whole_results=True)


@pytest.fixture
def unsplit_handler(case):
    """The handler with unsplit results."""
    return case.handler.with_no_batching(whole_results=True)


def test_unsplit_result_has_the_rows_of_single_predictions(case, unsplit_handler):
    element, n = stack_batch(case.examples), len(case.examples)
    [result] = run([element], RunInference(unsplit_handler))
    [predicted] = unsplit_handler.predict([element])
    assert type(without_key(result)) is PredictionResult
    assert without_key(result).model_id == case.model_id
    assert type(without_key(result).example) is type(without_key(element))
    assert same(predicted, result)
    single = [get_inference(each) for each in case.handler.predict(case.examples)]
    single = [np.ravel(each) if np.ndim(each) == 1 and len(each) == 1 else each for each in single]
    for row, each in zip(split_rows(get_inference(result), n), single, strict=True):
        assert same(np.ravel(row), np.ravel(each)) if np.ndim(each) else same(row, each)
    for _, leaf in leaves_with_path(get_inference(result)):
        assert retained_bytes(leaf) <= getattr(leaf, "nbytes", 0)


def test_failing_unsplit_element_is_one_dead_letter_and_metrics_count_rows(case, unsplit_handler):
    good, bad = [], []
    element = stack_batch(case.examples)
    wrong = (
        stack_batch([case.invalid, case.invalid]) if not isinstance(case.invalid, int) else [3, 3]
    )
    pipeline = beam.Pipeline(runner=RUNNER)
    created = pipeline | beam.Create([wrong, element, element], reshuffle=False)
    results, dead_letters = created | RunInference(unsplit_handler).with_exception_handling()
    _ = results | "good" >> beam.ParDo(CollectElements(good))
    _ = dead_letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    run_result = pipeline.run()
    run_result.wait_until_finish()
    [(failed, _)] = CollectElements.take(bad)
    assert same(failed, wrong) if not isinstance(failed, pd.DataFrame) else failed.equals(wrong)
    assert len(CollectElements.take(good)) == 2
    metrics = run_result.metrics().query()
    assert sum_metric(metrics["counters"], "num_inferences") == 2 * len(case.examples)
    assert sum_metric(metrics["counters"], "failed_elements") == 1
    sizes = sum_metric(metrics["distributions"], "inference_request_batch_size")
    assert sizes == 2 * len(case.examples)
    n_bytes = sum_metric(metrics["distributions"], "inference_request_batch_byte_size")
    assert n_bytes >= 2 * (case.n_bytes or 1)
