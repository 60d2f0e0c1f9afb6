"""TensorFlow models get their inputs by name, Keras models run as graphs, and errors name the input."""

from __future__ import annotations

import gc
import itertools
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models import ONES, ROWS, dense, expected, numbers, save_models, scaled
from runinference import tensorflow_inference as ours
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelLoadError,
    ResultMismatchError,
)
from runinference.frameworks.tensorflow import errors as tf_errors

pytestmark = pytest.mark.xdist_group("tensorflow")  # one process pays for the import
Numpy, ModelType = ours.TFModelHandlerNumpy, ours.ModelType


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", ["list.keras", "dict.keras", "dict"])
def test_binds_several_inputs_by_name_and_keeps_the_structure_of_outputs(folder, name):
    examples = [{"a": np.full(2, float(n)), "b": ONES} for n in (5, 6)]
    for n, result in zip(
        (5, 6), Numpy(str(folder / name), min_batch_size=2).predict(examples), strict=True
    ):
        inference = result.inference
        total, difference = (
            (inference["sum"], inference["difference"])
            if isinstance(inference, dict)
            else inference
        )
        assert (total.numpy().tolist(), difference.numpy().tolist()) == ([n + 1] * 2, [n - 1] * 2)


def test_inference_args_are_keywords_or_more_inputs_of_a_signature(folder, tmp_path):
    scaled().save_weights(tmp_path / "s.weights.h5")
    handler = Numpy(str(tmp_path / "s.weights.h5"), ModelType.SAVED_WEIGHTS, scaled)
    example = {"left": np.ones(2, np.float32), "right": np.ones(2, np.float32)}
    assert numbers(handler.predict([example], {"scale": 3.0})).tolist() == [[12]]
    for_a = Numpy(str(folder / "dict")).predict([5 * ONES], {"b": np.ones((1, 2))})
    assert for_a[0].inference["sum"].numpy().tolist() == [6, 6]


def test_names_a_missing_or_unknown_input(folder):
    for name in ("list.keras", "dict"):
        handler = Numpy(str(folder / name))
        with pytest.raises(ElementError, match="input 'b' is missing. .* dictionary of arrays"):
            handler.predict([{"a": ONES}])
        with pytest.raises(ElementError, match="no input 'c'. Its inputs are"):
            handler.predict([{"a": ONES, "b": ONES, "c": ONES}])


@pytest.mark.parametrize("name", ["m.keras", "m"])
def test_rejects_a_wrong_shape_or_dtype_and_names_both(folder, name):
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
def test_summarizes_errors_of_the_model_in_one_line(folder, name):
    handler = Numpy(str(folder / name))
    with pytest.raises(
        ElementError, match=r"int32 \(2,\).*: indices\[0,1\] = 100 is not in \[0, 10\)"
    ):
        handler.predict([[1, 100]])
    with pytest.raises(ElementError, match="takes int32, and the elements are float64"):
        handler.predict([[1, 0.5]])


def test_summarizes_errors_of_python_code_without_its_frames():
    error = ValueError(
        'in user code:\n\n    File "model.py", line 1, in call  *\n        lambda x: f(x)\n\n'
        "    ValueError: Expected 2 columns.\n    \n    Arguments: x\n"
    )
    assert tf_errors.summarize(error) == "Expected 2 columns"


def test_passes_strings_to_the_model(tmp_path):
    words = [
        keras.Input((), dtype="string"),
        keras.layers.TextVectorization(vocabulary=["cat", "dog"]),
    ]
    keras.Sequential(words).save(tmp_path / "words.keras")
    found = Numpy(str(tmp_path / "words.keras"), min_batch_size=2).predict(["cat dog", "dog cat"])
    assert numbers(found).tolist() == [[2, 3], [3, 2]]


def test_calls_a_module_without_signatures(tmp_path):
    class Doubles(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
        def __call__(self, x):
            return {"doubled": 2 * x}

    tf.saved_model.save(Doubles(), tmp_path / "m", signatures={})
    [result] = Numpy(str(tmp_path / "m")).predict(ROWS[:1])
    np.testing.assert_array_equal(result.inference["doubled"], 2 * ROWS[0])


def test_rejects_several_signatures_without_an_inference_fn(tmp_path):
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


def test_rejects_an_output_without_one_row_per_element(tmp_path):
    handler = Numpy("m", ModelType.SAVED_WEIGHTS, dense, min_batch_size=3)
    with pytest.raises(ResultMismatchError, match="3 elements|batch of 3"):
        list(handler.run_inference(list(ROWS), lambda x: tf.reduce_sum(x)))


def test_result_rows_own_their_memory(folder):
    wide = dense(units=16)  # rows of 64 bytes, which TensorFlow would return as views
    results = ours.default_numpy_inference_fn(wide, list(ROWS), {})
    places = sorted(
        np.asarray(memoryview(r.inference)).__array_interface__["data"][0] for r in results
    )
    assert all(later - earlier != 64 for earlier, later in itertools.pairwise(places))
    np.testing.assert_array_equal(numbers(results)[:, :3], expected())


def test_runs_a_keras_model_as_a_graph_unless_run_eagerly_is_set():
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


def test_frees_a_model_together_with_its_graph(folder):
    model = Numpy(str(folder / "m.keras")).load_model()
    ours.default_numpy_inference_fn(model, list(ROWS), {})
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def make_keras_model(structure):
    """Build a model that returns ten times its first input plus the second, with other names than its keys."""
    first, second = keras.Input((1,), name="b_in"), keras.Input((1,), name="a_in")
    total = keras.layers.Add()([keras.layers.Rescaling(10.0)(first), second])
    return keras.Model(structure(first, second), total)


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        (lambda first, second: [first, second], ("b_in", "a_in")),
        (lambda first, second: {"left": first, "right": second}, ("left", "right")),
        (lambda first, second: {"z": first, "a": second}, ("z", "a")),
        (lambda first, second: {"a_in": first, "b_in": second}, ("a_in", "b_in")),
        (lambda first, second: [first, {"x": second}], ("b_in", "x")),
    ],
)
def test_names_of_keras_inputs_are_the_keys_that_the_model_takes(tmp_path, structure, names):
    make_keras_model(structure).save(tmp_path / "m.keras")
    handler = Numpy(str(tmp_path / "m.keras"))
    [result] = handler.predict([dict(zip(names, ([1.0], [2.0]), strict=True))])
    assert result.inference.numpy().tolist() == [12]
    with pytest.raises(ElementError, match=f"no input 'other'.* are {names[0]}, {names[1]}"):
        handler.predict([{names[0]: [1.0], "other": [2.0]}])


def test_names_an_input_that_the_code_of_a_model_misses(tmp_path):
    scaled().save_weights(tmp_path / "s.weights.h5")
    handler = Numpy(str(tmp_path / "s.weights.h5"), ModelType.SAVED_WEIGHTS, scaled)
    with pytest.raises(ElementError, match="no input 'right'.*with_preprocess_fn"):
        handler.predict([{"left": np.ones(2, np.float32)}])


class Transposing(tf.Module):
    """Returns its input with the batch at the end, and with a first dimension of two."""

    @tf.function(input_signature=[tf.TensorSpec((None, 2, 3), tf.float32)])
    def __call__(self, x):
        return {"first": x, "moved": tf.transpose(x, (1, 0, 2))}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_output_that_does_not_start_with_the_batch_is_an_error(tmp_path, size):
    tf.saved_model.save(Transposing(), str(tmp_path))
    handler = Numpy(str(tmp_path), min_batch_size=size)
    with pytest.raises(ResultMismatchError):
        handler.predict(np.ones((size, 2, 3), np.float32))


@pytest.mark.parametrize("wrap", [lambda x: {"key": x}, lambda x: [{"key": x}]])
def test_inputs_with_one_key_in_nested_dictionaries_get_values_of_their_own(wrap, tmp_path):
    first, second = keras.Input((1,), name="first"), keras.Input((1,), name="second")
    inputs = {"a": wrap(first), "b": wrap(second)}
    path = str(tmp_path / "nested.keras")
    keras.Model(inputs, keras.layers.Subtract()([first, second])).save(path)
    one, five = np.ones(1, np.float32), np.full(1, 5, np.float32)
    [result] = Numpy(path).predict([{"first": five, "second": one}])
    assert result.inference.numpy().tolist() == [4]
    with pytest.raises(ElementError, match="Its inputs are first, second"):
        Numpy(path).predict([{"key": five}])
