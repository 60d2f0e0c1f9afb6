"""TensorFlow: SavedModels, Keras files and weights; no code of a file's runs, and every refusal says the cure."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import types
import weakref
import zipfile

import apache_beam as beam
import keras
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.io.filesystem import FileMetadata

from common import RUNNER, CollectElements, run
from defects.packages import BEAM, OURS
from model_updates import run_with_model_update
from runinference import RunInference
from runinference import tensorflow_inference as ours
from runinference.batching.policy import size_in_bytes
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelLoadError,
    ModelNotFoundError,
    OptionError,
    ResultMismatchError,
    is_out_of_memory,
)
from test_sklearn_inference import InMemory

pytestmark = pytest.mark.xdist_group("tensorflow")  # one process pays for the import
Numpy, Tensor, ModelType = ours.TFModelHandlerNumpy, ours.TFModelHandlerTensor, ours.ModelType

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
ONES = np.ones(2)


def dense(factor=1.0, units=3):
    """A layer whose weights are all the same."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
    model.set_weights([np.full(w.shape, factor) for w in model.get_weights()])
    return model


def expected(factor=1.0):
    return np.repeat(ROWS.sum(axis=1, keepdims=True) * factor + factor, 3, axis=1)


def arithmetic(outputs=lambda total, difference: [total, difference]):
    """Of a and b: their sum and their difference."""
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    return keras.Model([a, b], outputs(keras.layers.Add()([a, b]), keras.layers.Subtract()([a, b])))


def by_name(total, difference):
    return {"sum": total, "difference": difference}


class Twice(keras.layers.Layer):
    """A layer that a file names, and does not hold."""

    def call(self, x):
        return 2 * x


class Scaled(keras.Model):
    """A model that does not know its inputs, and takes an argument at each call."""

    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(1, kernel_initializer="ones")

    def call(self, x, scale=1.0):
        return self.layer(x["left"] + x["right"]) * scale


def scaled():
    model = Scaled()
    model({"left": tf.ones((1, 2)), "right": tf.ones((1, 2))})
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    dense().save(folder / "m.keras")
    dense().save(folder / "m.h5")
    dense().save_weights(folder / "m.weights.h5")
    dense().export(folder / "m", verbose=False)
    dense(10.0).save(folder / "tenfold.keras")
    dense(10.0).save_weights(folder / "tenfold.weights.h5")
    dense(10.0).export(folder / "tenfold", verbose=False)
    arithmetic().save(folder / "list.keras")
    arithmetic(by_name).save(folder / "dict.keras")
    arithmetic(by_name).export(folder / "dict", verbose=False)
    embedding = [keras.Input((2,), dtype="int32"), keras.layers.Embedding(10, 3)]
    keras.Sequential(embedding).save(folder / "embedding.keras")
    keras.Sequential(embedding).export(folder / "embedding", verbose=False)
    keras.Sequential([keras.Input((4,)), Twice()]).save(folder / "twice.keras")
    lambdas = keras.Sequential(
        [keras.Input((4,)), keras.layers.Lambda(lambda x: os.getpid() + x, name="spy")]
    )
    lambdas.save(folder / "lambda.keras")
    lambdas.save(folder / "lambda.h5")
    return folder


def numbers(results):
    return np.array([result.inference.numpy() for result in results])


def part(path, length):
    """Cuts a file."""
    path.write_bytes(path.read_bytes()[:length])
    return path


@pytest.mark.parametrize("name", ["m", "m.keras", "m.h5"])
@pytest.mark.parametrize(
    ("kind", "examples"), [(Numpy, list(ROWS)), (Tensor, [*map(tf.constant, ROWS)])]
)
def test_a_whole_model_runs_in_a_pipeline_whatever_its_format(folder, name, kind, examples):
    path = str(folder / name)
    results = run(examples, RunInference(kind(path)))
    results.sort(key=lambda result: float(result.example[0]))
    np.testing.assert_array_equal(numbers(results), expected())
    assert {result.model_id for result in results} == {path}
    assert all(isinstance(result.inference, tf.Tensor) for result in results)


@pytest.mark.parametrize("name", ["m.weights.h5", "m.h5", "m.keras"])
def test_weights_alone_go_into_a_model_that_a_function_builds(folder, name):
    handler = Numpy(str(folder / name), ModelType.SAVED_WEIGHTS, lambda: dense(5.0))
    np.testing.assert_array_equal(numbers(handler.predict(ROWS)), expected())


def test_custom_weights_replace_those_of_the_model(folder):
    handler = Numpy(str(folder / "m.keras"), custom_weights=str(folder / "tenfold.weights.h5"))
    np.testing.assert_array_equal(numbers(handler.predict(ROWS)), expected(10))


@pytest.mark.parametrize("module", ["TFModelHandlerNumpy", "TFModelHandlerTensor"])
def test_results_are_those_of_beams_handler(folder, monkeypatch, module):
    hub = types.SimpleNamespace(
        resolve=lambda path: path
    )  # the rest of it, Beam's handler does not use
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


@pytest.mark.parametrize("name", ["list.keras", "dict.keras", "dict"])
def test_several_inputs_and_outputs_come_by_name_or_as_the_model_has_them(folder, name):
    examples = [{"a": np.full(2, float(n)), "b": ONES} for n in (5, 6)]
    for n, result in zip(
        (5, 6), Numpy(str(folder / name), min_batch_size=2).predict(examples), strict=True
    ):
        said = result.inference
        total, difference = (said["sum"], said["difference"]) if isinstance(said, dict) else said
        assert (total.numpy().tolist(), difference.numpy().tolist()) == ([n + 1] * 2, [n - 1] * 2)


def test_inference_args_are_keywords_of_the_call_or_further_inputs_of_a_signature(folder, tmp_path):
    scaled().save_weights(tmp_path / "s.weights.h5")
    handler = Numpy(str(tmp_path / "s.weights.h5"), ModelType.SAVED_WEIGHTS, scaled)
    example = {"left": np.ones(2, np.float32), "right": np.ones(2, np.float32)}
    assert numbers(handler.predict([example], {"scale": 3.0})).tolist() == [[12]]
    for_a = Numpy(str(folder / "dict")).predict([5 * ONES], {"b": np.ones((1, 2))})
    assert for_a[0].inference["sum"].numpy().tolist() == [6, 6]


def test_a_missing_or_unknown_input_is_named(folder):
    for name in ("list.keras", "dict"):
        handler = Numpy(str(folder / name))
        with pytest.raises(ElementError, match="input 'b' is missing. .* dictionary of arrays"):
            handler.predict([{"a": ONES}])
        with pytest.raises(ElementError, match="no input 'c'. Its inputs are"):
            handler.predict([{"a": ONES, "b": ONES, "c": ONES}])


@pytest.mark.parametrize("name", ["m.keras", "m"])
def test_another_shape_or_type_than_the_model_takes_is_named_with_both(folder, name):
    handler = Numpy(str(folder / name))
    with pytest.raises(BatchShapeError, match=r"\(5,\).* \(4,?\)"):
        handler.predict([np.ones(5)])
    with pytest.raises(ElementError, match="takes float32, and the elements are <U1"):
        handler.predict([np.array(list("abcd"))])
    with pytest.raises(ElementError, match="too large"):
        handler.predict([np.full(4, 1e300)])
    with pytest.raises(BatchShapeError, match="Element 1 of the batch"):
        Numpy(str(folder / name), min_batch_size=3).predict([ROWS[0], np.ones(5), ROWS[1]])


@pytest.mark.parametrize("name", ["embedding.keras", "embedding"])
def test_what_only_the_model_can_refuse_is_told_in_one_line(folder, name):
    handler = Numpy(str(folder / name))
    with pytest.raises(
        ElementError, match=r"int32 \(2,\).*\(indices\[0,1\] = 100 is not in \[0, 10\)\)"
    ):
        handler.predict([[1, 100]])
    with pytest.raises(ElementError, match="takes int32, and the elements are float64"):
        handler.predict([[1, 0.5]])


def test_text_goes_in_as_text(tmp_path):
    words = [
        keras.Input((), dtype="string"),
        keras.layers.TextVectorization(vocabulary=["cat", "dog"]),
    ]
    keras.Sequential(words).save(tmp_path / "words.keras")
    found = Numpy(str(tmp_path / "words.keras"), min_batch_size=2).predict(["cat dog", "dog cat"])
    assert numbers(found).tolist() == [[2, 3], [3, 2]]


def test_a_module_without_signatures_is_called(tmp_path):
    class Doubles(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
        def __call__(self, x):
            return {"doubled": 2 * x}

    tf.saved_model.save(Doubles(), tmp_path / "m", signatures={})
    [result] = Numpy(str(tmp_path / "m")).predict(ROWS[:1])
    np.testing.assert_array_equal(result.inference["doubled"], 2 * ROWS[0])


def test_a_model_of_several_signatures_wants_to_be_told_which(tmp_path):
    module = tf.Module()
    module.double = tf.function(lambda x: {"y": 2 * x}, [tf.TensorSpec((None, 4), tf.float32)])
    module.triple = tf.function(lambda x: {"y": 3 * x}, [tf.TensorSpec((None, 4), tf.float32)])
    signatures = {"double": module.double, "triple": module.triple}
    tf.saved_model.save(module, tmp_path / "m", signatures)
    path = str(tmp_path / "m")
    with pytest.raises(
        ModelLoadError, match="signatures double, triple, .* none of them .* inference_fn"
    ):
        Numpy(path).predict(ROWS)

    def triple(model, batch, inference_args, model_id):
        return ours.to_results(batch, model.signatures["triple"](x=np.stack(batch))["y"], model_id)

    np.testing.assert_array_equal(numbers(Numpy(path, inference_fn=triple).predict(ROWS)), 3 * ROWS)


def test_an_output_that_is_not_one_row_an_element_is_an_error(tmp_path):
    handler = Numpy("m", ModelType.SAVED_WEIGHTS, dense, min_batch_size=3)
    with pytest.raises(ResultMismatchError, match="3 elements|batch of 3"):
        list(handler.run_inference(list(ROWS), lambda x: tf.reduce_sum(x)))


def test_rows_own_their_memory(folder):
    wide = dense(units=16)  # rows of 64 bytes, which TensorFlow would give as parts of the whole
    results = ours.default_numpy_inference_fn(wide, list(ROWS), {})
    places = sorted(
        np.asarray(memoryview(r.inference)).__array_interface__["data"][0] for r in results
    )
    assert all(later - earlier != 64 for earlier, later in itertools.pairwise(places))
    np.testing.assert_array_equal(numbers(results)[:, :3], expected())


def test_a_keras_model_runs_as_a_graph_unless_it_says_otherwise():
    eagerly = []

    class Notes(keras.layers.Layer):
        def call(self, x):
            eagerly.append(tf.executing_eagerly())
            return x

    model = keras.Sequential([keras.Input((4,)), Notes()])
    eagerly.clear()
    for _ in range(3):
        ours.default_numpy_inference_fn(model, list(ROWS), {})
    assert eagerly == [False]
    model.compile(run_eagerly=True)
    ours.default_numpy_inference_fn(model, list(ROWS), {})
    assert eagerly == [False, True]


def test_a_model_that_is_dropped_is_freed_with_its_graph(folder):
    model = Numpy(str(folder / "m.keras")).load_model()
    ours.default_numpy_inference_fn(model, list(ROWS), {})
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_python_in_a_file_is_refused_and_named(folder, name):
    path = str(folder / name)
    with pytest.raises(
        ModelLoadError, match="bytecode.* of the layer 'spy'.*getpid.*'safe_mode': False"
    ):
        Numpy(path).predict(ROWS)
    trusted = Numpy(path, load_model_args={"safe_mode": False, "custom_objects": {"os": os}})
    assert trusted.load_model().layers[-1].name == "spy"


def test_python_in_a_file_is_found_however_deep_and_old(tmp_path):
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x, name="deep")])
    keras.Sequential([keras.Input((4,)), inner]).save(tmp_path / "nested.keras")
    with pytest.raises(ModelLoadError, match="the layer 'deep'"):
        Numpy(str(tmp_path / "nested.keras")).load_model()
    loading = importlib.import_module("runinference.frameworks.tensorflow.loading")
    keras_2 = {"name": "old", "function": ["AAAA", None, None], "function_type": "lambda"}
    found = dict(loading._lambdas({"layers": [{"config": keras_2}]}, "the model"))
    assert found == {"the layer 'old'": "AAAA"}


def test_layers_of_ones_own_come_in_load_model_args(folder):
    path = str(folder / "twice.keras")
    with pytest.raises(ModelLoadError, match="Twice.*'custom_objects': {'Name': Name}"):
        Numpy(path).load_model()
    handler = Numpy(path, load_model_args={"custom_objects": {"Twice": Twice}})
    np.testing.assert_array_equal(numbers(handler.predict(ROWS)), 2 * ROWS)
    with pytest.raises(
        ModelLoadError, match="custom_object.*Check the keywords in load_model_args"
    ):
        Numpy(path, load_model_args={"custom_object": {}}).load_model()


def test_options_that_contradict_each_other_are_refused_at_once(folder):
    with pytest.raises(OptionError, match="must be ModelType.SAVED_MODEL or"):
        Numpy("m", "SAVED_MODEL")
    with pytest.raises(OptionError, match="needs create_model_fn"):
        Numpy("m", ModelType.SAVED_WEIGHTS)
    with pytest.raises(OptionError, match="add model_type=ModelType.SAVED_WEIGHTS"):
        Numpy("m", create_model_fn=dense)
    with pytest.raises(OptionError, match="are for ModelType.SAVED_MODEL"):
        Numpy("m", ModelType.SAVED_WEIGHTS, dense, custom_weights="w")
    with pytest.raises(OptionError, match="tags and options, and not compile"):
        Numpy(str(folder / "m"), load_model_args={"compile": False}).load_model()
    with pytest.raises(ModelLoadError, match="custom_weights.* SavedModel has its weights inside"):
        Numpy(str(folder / "m"), custom_weights=str(folder / "m.weights.h5")).load_model()


def test_a_path_that_leads_to_no_model_says_what_would(folder, tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"Did you mean '.*m.keras'"):
        Numpy(str(folder / "n.keras")).load_model()
    with pytest.raises(ModelLoadError, match="a part of a SavedModel: give its folder"):
        Numpy(str(folder / "m" / "saved_model.pb")).load_model()
    with pytest.raises(ModelLoadError, match="holds no saved_model.pb. .* model.export"):
        Numpy(str(folder / "m" / "variables")).load_model()
    shutil.copytree(folder / "m", tmp_path / "served" / "3")
    with pytest.raises(ModelLoadError, match=r"Give the one inside: '.*served/3'"):
        Numpy(str(tmp_path / "served")).load_model()
    with pytest.raises(ModelLoadError, match=r"web address. .* kagglehub.model_download"):
        Numpy("https://tfhub.dev/google/nnlm/1").load_model()
    with pytest.raises(ModelLoadError, match="holds weights alone. .*ModelType.SAVED_WEIGHTS"):
        Numpy(str(folder / "m.weights.h5")).load_model()
    (tmp_path / "ckpt.index").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="a checkpoint of TensorFlow's, .*save_weights"):
        Numpy(str(tmp_path / "ckpt"), ModelType.SAVED_WEIGHTS, dense).load_model()


@pytest.mark.parametrize("length", [0, 3, 100, -1])
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_a_truncated_file_is_named(folder, tmp_path, name, length):
    path = str(part(shutil.copy(folder / name, tmp_path) and tmp_path / name, length))
    of_weights = (ModelType.SAVED_WEIGHTS, dense) if "weights" in name else ()
    with pytest.raises(ModelLoadError, match=f"{name}.* may be truncated"):
        Numpy(path, *of_weights).load_model()


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_a_truncated_saved_model_is_named(folder, tmp_path, name):
    shutil.copytree(folder / "m", tmp_path / "m")
    part(tmp_path / "m" / name, -1)
    with pytest.raises(ModelLoadError, match="cannot be loaded .* may be truncated"):
        Numpy(str(tmp_path / "m")).load_model()


def test_weights_of_another_architecture_are_refused(folder):
    handler = Numpy(str(folder / "m.weights.h5"), ModelType.SAVED_WEIGHTS, lambda: dense(units=5))
    with pytest.raises(ModelLoadError, match="no weights for this model .* architecture"):
        handler.load_model()


def test_a_file_of_a_later_keras_says_so(folder, tmp_path):
    with (
        zipfile.ZipFile(folder / "twice.keras") as old,
        zipfile.ZipFile(tmp_path / "new.keras", "w") as new,
    ):
        for name in {*old.namelist()} - {"metadata.json"}:
            new.writestr(name, old.read(name))
        new.writestr("metadata.json", json.dumps({"keras_version": "99.1.0"}))
    with pytest.raises(
        ModelLoadError, match="Keras 99.1.0 wrote it, .* install a later TensorFlow"
    ):
        Numpy(str(tmp_path / "new.keras")).load_model()


class Folders(InMemory):
    """The file system of the other tests, with folders."""

    @classmethod
    def scheme(cls):
        return "folders"

    def has_dirs(self):
        return False

    def _list(self, prefix):
        return (
            FileMetadata(path, len(data), 0)
            for path, data in self.files.items()
            if path.startswith(prefix)
        )


def test_models_are_read_from_any_file_system_of_beams(folder):
    for file in (folder / "m").rglob("*"):
        if file.is_file():
            Folders.files[f"folders://b/m/{file.relative_to(folder / 'm').as_posix()}"] = (
                file.read_bytes()
            )
    for name in ("m.keras", "m.weights.h5"):
        Folders.files[f"folders://b/{name}"] = (folder / name).read_bytes()
    for path, *options in (
        ("folders://b/m",),
        ("folders://b/m.keras",),
        ("folders://b/m.weights.h5", ModelType.SAVED_WEIGHTS, dense),
    ):
        np.testing.assert_array_equal(numbers(Numpy(path, *options).predict(ROWS)), expected())


def test_one_bad_element_is_set_aside_alone(folder):
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        rows = pipeline | beam.Create([*ROWS, np.zeros(5)], reshuffle=False)
        results, failed = rows | RunInference(Numpy(str(folder / "m"))).with_exception_handling()
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = failed.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    assert (len(CollectElements.take(good)), len(CollectElements.take(bad))) == (3, 1)


@pytest.mark.parametrize("names", [("m.keras", "tenfold.keras"), ("m", "tenfold")])
def test_a_new_model_takes_over(folder, names):
    old, new = (str(folder / name) for name in names)
    results = run_with_model_update(OURS, Numpy(old), new, list(ROWS))
    assert {result.model_id for result in results} == {new}
    assert sorted(numbers(results)[:, 0]) == sorted(expected(10)[:, 0])


def test_batches_may_be_arrays_or_tensors_of_rows(folder):
    handler = Numpy(str(folder / "m")).with_no_batching()
    assert len(handler.predict([ROWS, ROWS])) == 6
    tensors = Tensor(str(folder / "m.keras")).with_no_batching()
    assert len(tensors.predict([tf.constant(ROWS)])) == 3


def test_the_bytes_of_a_tensor_are_those_of_its_data():
    assert size_in_bytes(tf.constant(ROWS)) == ROWS.nbytes
    assert Tensor("m").get_num_bytes([tf.constant(row) for row in ROWS]) == ROWS.nbytes
    namespaces = [kind("m").get_metrics_namespace() for kind in (Numpy, Tensor)]
    assert namespaces == ["BeamML_TF_Numpy", "BeamML_TF_Tensor"]


def test_memory_that_runs_out_on_a_gpu_is_known():
    assert is_out_of_memory(
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    )


def test_a_subclass_need_not_call_the_constructor(folder):
    class Own(Numpy):
        def __init__(self):
            self._model_uri = str(folder / "m.keras")
            self._model_type = ModelType.SAVED_MODEL
            self._inference_fn = ours.default_numpy_inference_fn
            self._load_model_args = {}
            self._custom_weights = ""

    np.testing.assert_array_equal(numbers(Own().predict(ROWS)), expected())


def test_without_tensorflow_the_error_names_the_extra():
    program = (
        "import sys; sys.modules['tensorflow'] = None; import runinference.tensorflow_inference"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'pip install "runinference[tensorflow]"' in ended.stderr


@pytest.mark.parametrize("handler", [Numpy, Tensor])
def test_threads_may_share_a_call(handler):
    assert RunInference(handler("model.keras"))._config().session.dynamic_batching
