"""Elements that are batches already, with a result per row or one unsplit result."""

from __future__ import annotations

import os
import time

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
import torch
from apache_beam.ml.inference import base as beam_base
from apache_beam.transforms import window

from collate.test_unsplit import Sums
from common import RUNNER, CollectElements, Doubler, FunctionHandler, linear_regression, run
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    MaybeKeyedModelHandler,
    ModelHandler,
    ModelMetadata,
    PredictionResult,
    RunInference,
)
from runinference.collate.padding import Padding
from runinference.errors import InferenceTimeoutError, OptionError, OutOfMemoryError
from runinference.pytorch_inference import PytorchModelHandlerKeyedTensor, PytorchModelHandlerTensor
from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas
from runinference.transforms.coders import result_type

ARRAYS = [np.arange(n, dtype=float).reshape(-1, 1) for n in (3, 5, 1)]


@pytest.fixture
def twice(tmp_path):
    return SklearnModelHandlerNumpy(linear_regression(tmp_path / "twice"))


def unsplit(handler):
    return handler.with_no_batching(whole_results=True)


def get_inferences(results):
    return [np.round(result.inference).tolist() for result in results]


TWICE = [[0, 2, 4], [0, 2, 4, 6, 8], [0]]


def run_with_dead_letters(elements, transform):
    """Return the results, and the dead letters as pairs of element and message."""
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        results, letters = pipeline | beam.Create(elements, reshuffle=False) | transform
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    return CollectElements.take(good), [
        (element, message) for element, (_, message, _) in CollectElements.take(bad)
    ]


def test_each_array_gets_one_result(twice):
    results = run(ARRAYS, RunInference(unsplit(twice)))
    assert get_inferences(results) == TWICE == get_inferences(unsplit(twice).predict(ARRAYS))
    assert all(type(result) is PredictionResult for result in results)


@pytest.mark.parametrize("windows", [window.FixedWindows(5), window.SlidingWindows(10, 5)])
def test_a_result_has_the_timestamp_and_windows_of_its_array(twice, windows):
    caught = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        timed = [window.TimestampedValue(array, 7) for array in ARRAYS]
        created = pipeline | beam.Create(timed, reshuffle=False) | beam.Map(lambda x: x)
        _ = (
            created
            | beam.WindowInto(windows)
            | RunInference(unsplit(twice))
            | beam.ParDo(CollectElements(caught))
        )
    CollectElements.take(caught)
    assert {(timestamp.micros, its.start <= 7 < its.end) for _, timestamp, its in caught} == {
        (7_000_000, True)
    }
    assert len(caught) == len(ARRAYS) * (2 if isinstance(windows, window.SlidingWindows) else 1)


def test_preprocess_and_postprocess_functions_get_the_array_and_the_unsplit_result(twice):
    handler = (
        unsplit(twice)
        .with_preprocess_fn(lambda array: array + 1)
        .with_postprocess_fn(lambda result: (len(result.example), round(result.inference.sum())))
    )
    assert run(ARRAYS, RunInference(handler)) == [(3, 12), (5, 30), (1, 2)]


def test_a_data_frame_of_many_rows_gets_one_result(tmp_path):
    handler = unsplit(SklearnModelHandlerPandas(linear_regression(tmp_path / "frames")))
    frame = pd.DataFrame(ARRAYS[1])
    [result] = run([frame], RunInference(handler))
    assert result.example.equals(frame)
    assert get_inferences([result]) == TWICE[1:2]


def test_by_default_a_data_frame_gets_a_result_per_row(tmp_path):
    path = linear_regression(tmp_path / "frames")
    results = run(
        [pd.DataFrame(ARRAYS[0])], RunInference(SklearnModelHandlerPandas(path).with_no_batching())
    )
    assert [round(result.inference) for result in results] == TWICE[0]


def test_a_dictionary_of_tensors_gets_one_result(tmp_path):
    class Weighted(torch.nn.Module):
        def forward(self, x, weight):
            return x.sum(1) * weight

    torch.save({}, tmp_path / "none")
    handler = PytorchModelHandlerKeyedTensor(str(tmp_path / "none"), Weighted)
    element = {"x": torch.ones(4, 2), "weight": torch.arange(4.0)}
    [result] = run([element], RunInference(unsplit(handler)))
    assert result.inference.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_keyed_array_gets_one_keyed_result(twice, where):
    handler = (
        KeyedModelHandler(unsplit(twice))
        if where == "inside"
        else unsplit(KeyedModelHandler(twice))
    )
    results = run(list(zip("aba", ARRAYS, strict=True)), RunInference(handler))
    assert [key for key, _ in results] == ["a", "b", "a"]
    assert get_inferences(result for _, result in results) == TWICE
    assert KeyedModelHandler(twice).with_no_batching().predict([[("a", ARRAYS[0][1])]])[0][0] == "a"


def test_an_optionally_keyed_array_gets_one_result(twice):
    handler = unsplit(MaybeKeyedModelHandler(twice))
    assert get_inferences(handler.predict(ARRAYS)) == TWICE
    [(key, result)] = handler.predict([("a", ARRAYS[0])])
    assert (key, *get_inferences([result])) == ("a", TWICE[0])


def test_unsplit_results_work_with_a_model_per_key(tmp_path, twice):
    thrice = SklearnModelHandlerNumpy(linear_regression(tmp_path / "thrice", 3))
    mappings = [KeyModelMapping(["a"], twice), KeyModelMapping(["b", "c"], thrice)]
    handler = unsplit(KeyedModelHandler(mappings))
    elements = [("a", ARRAYS[0]), ("b", ARRAYS[0]), ("d", ARRAYS[0]), ARRAYS[0]]
    good, bad = run_with_dead_letters(elements, RunInference(handler).with_exception_handling())
    assert [(key, *get_inferences([result])) for key, result in good] == [
        ("a", [0, 2, 4]),
        ("b", [0, 3, 6]),
    ]
    assert ["No model is mapped to the key 'd'" in message for _, message in bad] == [True, False]
    assert "takes (key, example)" in bad[1][1]
    assert [key for key, _ in handler.predict(elements[:2])] == ["a", "b"]


def test_one_model_of_several_keys_cannot_return_unsplit_results_alone(twice):
    with pytest.raises(OptionError, match=r"with_no_batching\(whole_results=True\)"):
        KeyedModelHandler([KeyModelMapping(["a"], unsplit(twice))])


def test_the_output_of_a_beam_handler_is_unchanged():
    class Beams(beam_base.ModelHandler):
        def load_model(self):
            return None

        def run_inference(self, batch, model, inference_args=None):
            return [len(batch)]

    handler = unsplit(KeyedModelHandler(Beams()))
    assert run([("a", ARRAYS[0])], RunInference(handler)) == [("a", [3])]
    several = unsplit(KeyedModelHandler([KeyModelMapping(["a"], Beams())]))
    assert run([("a", ARRAYS[0])], RunInference(several)) == [("a", [3])]


def test_padding_raises(tmp_path):
    torch.save({}, tmp_path / "none")
    handler = PytorchModelHandlerTensor(
        str(tmp_path / "none"), torch.nn.Identity, padding=Padding()
    )
    with pytest.raises(OptionError, match="leave padding out"):
        unsplit(handler)
    with pytest.raises(OptionError, match="leave padding out"):
        unsplit(KeyedModelHandler(handler))


def test_a_failing_array_is_one_dead_letter(twice):
    wrong = np.zeros((4, 2))
    transform = RunInference(unsplit(twice)).with_exception_handling()
    good, [(element, message)] = run_with_dead_letters([ARRAYS[0], wrong, ARRAYS[1]], transform)
    assert get_inferences(good) == TWICE[:2]
    assert element.shape == (4, 2)
    assert "2 features" in message


def test_an_array_that_runs_out_of_memory_is_not_split():
    calls = []

    def predict(batch):
        calls.append(len(batch))
        if len(batch) > 3:
            raise MemoryError("out of memory")
        return batch

    handler = unsplit(FunctionHandler(predict))
    _, [(element, message)] = run_with_dead_letters(
        ARRAYS, RunInference(handler).with_exception_handling()
    )
    assert len(element) == 5
    assert "an element of 5 rows" in message
    with pytest.raises(OutOfMemoryError):
        handler.predict(ARRAYS)
    assert calls == [3, 5]
    with pytest.raises(OutOfMemoryError, match="smaller arrays"):
        run(ARRAYS, RunInference(handler))


class Elsewhere(Sums):
    """Returns the process it runs in. An array of sevens hangs."""

    def run_inference(self, batch, model, inference_args=None):
        if (batch == 7).all():
            time.sleep(60)
        return self.results_of(batch, model(batch), str(os.getpid()))


@pytest.mark.parametrize("placement", ["subprocess", "large_model"])
def test_unsplit_results_work_in_other_processes(placement):
    handler = unsplit(Elsewhere(large_model=placement == "large_model"))
    transform = RunInference(handler)
    if placement == "subprocess":
        good, _ = run_with_dead_letters(
            ARRAYS, transform.with_exception_handling(use_subprocess=True)
        )
        assert os.getpid() not in {int(result.model_id) for result in good}
    else:
        good = run(ARRAYS, transform)
    assert [result.inference.tolist() for result in good] == [a[:, 0].tolist() for a in ARRAYS]


def test_an_array_that_exceeds_the_timeout_becomes_a_dead_letter():
    stuck = np.full((2, 1), 7.0)
    transform = RunInference(unsplit(Elsewhere())).with_exception_handling(timeout=1)
    good, [(element, message)] = run_with_dead_letters([ARRAYS[0], stuck, ARRAYS[1]], transform)
    assert len(good) == 2
    assert element.tolist() == stuck.tolist()
    assert InferenceTimeoutError.__name__ in message


def test_a_model_refresh_replaces_the_model(tmp_path, twice):
    thrice = linear_regression(tmp_path / "thrice", 3)
    with beam.Pipeline(runner=RUNNER) as pipeline:
        caught = []
        names = pipeline | "names" >> beam.Create([ModelMetadata(thrice, "thrice")])
        _ = (
            pipeline
            | beam.Create(ARRAYS)
            | RunInference(unsplit(twice), model_metadata_pcoll=names)
            | beam.ParDo(CollectElements(caught))
        )
    results = CollectElements.take(caught)
    assert sorted(map(len, get_inferences(results))) == [1, 3, 5]
    assert {result.model_id for result in results} == {thrice}


def test_the_declared_type_is_the_type_of_the_result(twice):
    assert result_type(unsplit(twice), np.ndarray) is PredictionResult
    keyed = result_type(unsplit(KeyedModelHandler(twice)), tuple[str, np.ndarray])
    assert keyed.tuple_types[1] is PredictionResult

    class Own(ModelHandler):
        def run_inference(self, batch, model, inference_args=None) -> list[PredictionResult]:
            return []

    assert result_type(Own(), np.ndarray) is PredictionResult
    assert result_type(unsplit(Own()), np.ndarray) is not PredictionResult
    assert Doubler("x").gives_whole_results() is False


class AppendsInPlace(ModelHandler):
    """Appends a number to the list in each cell, and returns its length."""

    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        cells = [frame["a"].iloc[0] for frame in batch]
        for cell in cells:
            cell.append(1)
        return [len(cell) for cell in cells]


def test_each_window_gets_the_objects_of_a_frame_as_they_came():
    caught = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        _ = (
            pipeline
            | beam.Create([1, 2], reshuffle=False)
            | beam.Map(lambda n: window.TimestampedValue(pd.DataFrame({"a": [[n]]}), 7))
            | beam.WindowInto(window.SlidingWindows(15, 5))
            | RunInference(AppendsInPlace(max_batch_size=1))
            | beam.ParDo(CollectElements(caught))
        )
    assert CollectElements.take(caught) == [2] * 6
