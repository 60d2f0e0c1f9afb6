"""TensorFlow handlers run SavedModels and Keras files in pipelines, as Beam's handlers do."""

from __future__ import annotations

import subprocess
import sys
import types

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf

from common import RUNNER, CollectElements, run
from defects.packages import BEAM, OURS
from keras_models import ROWS, dense, expected, numbers, save_models
from model_updates import run_with_model_update
from runinference import RunInference
from runinference import tensorflow_inference as ours
from runinference.batching.element_size import size_in_bytes
from runinference.errors import ModelLoadError, OptionError, is_out_of_memory

pytestmark = pytest.mark.xdist_group("tensorflow")  # one process pays for the import
Numpy, Tensor, ModelType = ours.TFModelHandlerNumpy, ours.TFModelHandlerTensor, ours.ModelType


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", ["m", "m.keras", "m.h5"])
@pytest.mark.parametrize(
    ("kind", "examples"), [(Numpy, list(ROWS)), (Tensor, [*map(tf.constant, ROWS)])]
)
def test_runs_a_model_of_any_format_in_a_pipeline(folder, name, kind, examples):
    path = str(folder / name)
    results = run(examples, RunInference(kind(path)))
    results.sort(key=lambda result: float(result.example[0]))
    np.testing.assert_array_equal(numbers(results), expected())
    assert {result.model_id for result in results} == {path}
    assert all(isinstance(result.inference, tf.Tensor) for result in results)


@pytest.mark.parametrize("module", ["TFModelHandlerNumpy", "TFModelHandlerTensor"])
def test_results_equal_those_of_beams_handler(folder, monkeypatch, module):
    hub = types.SimpleNamespace(resolve=lambda path: path)  # all that Beam's handler uses
    monkeypatch.setitem(sys.modules, "tensorflow_hub", hub)
    theirs = getattr(BEAM.module("tensorflow_inference"), module)(str(folder / "m.keras"))
    batch = [tf.constant(row) for row in ROWS] if "Tensor" in module else list(ROWS)
    there = list(theirs.run_inference(batch, theirs.load_model()))
    here = getattr(ours, module)(str(folder / "m.keras")).predict(batch)
    np.testing.assert_array_equal(numbers(here), numbers(there))
    assert [type(result.inference) for result in here] == [
        type(result.inference) for result in there
    ]
    assert [result.model_id for result in here] == [result.model_id for result in there]


def test_rejects_conflicting_options(folder):
    with pytest.raises(OptionError, match="must be ModelType.SAVED_MODEL or"):
        Numpy("m", "SAVED_MODEL")
    with pytest.raises(OptionError, match="needs create_model_fn"):
        Numpy("m", ModelType.SAVED_WEIGHTS)
    with pytest.raises(OptionError, match="add model_type=ModelType.SAVED_WEIGHTS"):
        Numpy("m", create_model_fn=dense)
    with pytest.raises(OptionError, match="are for ModelType.SAVED_MODEL"):
        Numpy("m", ModelType.SAVED_WEIGHTS, dense, custom_weights="w")
    with pytest.raises(OptionError, match="tags and options, but not compile"):
        Numpy(str(folder / "m"), load_model_args={"compile": False}).load_model()
    with pytest.raises(ModelLoadError, match="custom_weights.* SavedModel contains its weights"):
        Numpy(str(folder / "m"), custom_weights=str(folder / "m.weights.h5")).load_model()


def test_only_the_invalid_element_becomes_a_dead_letter(folder):
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        rows = pipeline | beam.Create([*ROWS, np.zeros(5)], reshuffle=False)
        results, failed = rows | RunInference(Numpy(str(folder / "m"))).with_exception_handling()
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = failed.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    assert (len(CollectElements.take(good)), len(CollectElements.take(bad))) == (3, 1)


@pytest.mark.parametrize("names", [("m.keras", "tenfold.keras"), ("m", "tenfold")])
def test_a_new_model_replaces_the_old_one(folder, names):
    old, new = (str(folder / name) for name in names)
    results = run_with_model_update(OURS, Numpy(old), new, list(ROWS))
    assert {result.model_id for result in results} == {new}
    assert sorted(numbers(results)[:, 0]) == sorted(expected(10)[:, 0])


def test_accepts_arrays_and_tensors_of_rows_as_batches(folder):
    handler = Numpy(str(folder / "m")).with_no_batching()
    assert len(handler.predict([ROWS, ROWS])) == 6
    tensors = Tensor(str(folder / "m.keras")).with_no_batching()
    assert len(tensors.predict([tf.constant(ROWS)])) == 3


def test_measures_the_bytes_of_tensors_and_reports_beams_metrics_namespaces():
    assert size_in_bytes(tf.constant(ROWS)) == ROWS.nbytes
    assert Tensor("m").get_num_bytes([tf.constant(row) for row in ROWS]) == ROWS.nbytes
    namespaces = [kind("m").get_metrics_namespace() for kind in (Numpy, Tensor)]
    assert namespaces == ["BeamML_TF_Numpy", "BeamML_TF_Tensor"]


def test_resource_exhausted_errors_count_as_out_of_memory():
    assert is_out_of_memory(
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    )


def test_a_subclass_can_skip_the_constructor(folder):
    class Own(Numpy):
        def __init__(self):
            self._model_uri = str(folder / "m.keras")
            self._model_type = ModelType.SAVED_MODEL
            self._inference_fn = ours.default_numpy_inference_fn
            self._load_model_args = {}
            self._custom_weights = ""

    np.testing.assert_array_equal(numbers(Own().predict(ROWS)), expected())


def test_names_the_extra_if_tensorflow_is_missing():
    program = (
        "import sys; sys.modules['tensorflow'] = None; import runinference.tensorflow_inference"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'pip install "runinference[tensorflow]"' in ended.stderr


@pytest.mark.parametrize("handler", [Numpy, Tensor])
def test_threads_can_share_a_call(handler):
    assert RunInference(handler("model.keras"))._config().session.dynamic_batching
