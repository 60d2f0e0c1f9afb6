"""TensorFlow models and weights load from every format, no code in a file runs, and errors say how to fix it."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import keras
import numpy as np
import pytest
from apache_beam.io.filesystem import FileMetadata

from in_memory_file_system import InMemory
from keras_models import ROWS, Twice, dense, expected, numbers, save_models
from runinference import tensorflow_inference as ours
from runinference.errors import ModelLoadError, ModelNotFoundError
from runinference.frameworks.tensorflow.keras_file import find_bytecode

pytestmark = pytest.mark.xdist_group("tensorflow")  # one process pays for the import
Numpy, ModelType = ours.TFModelHandlerNumpy, ours.ModelType


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def truncate(path, length):
    """Cut a file to a length."""
    path.write_bytes(path.read_bytes()[:length])
    return path


@pytest.mark.parametrize("name", ["m.weights.h5", "m.h5", "m.keras"])
def test_loads_weights_into_the_model_that_create_model_fn_builds(folder, name):
    handler = Numpy(str(folder / name), ModelType.SAVED_WEIGHTS, lambda: dense(5.0))
    np.testing.assert_array_equal(numbers(handler.predict(ROWS)), expected())


def test_custom_weights_replace_the_weights_of_the_model(folder):
    handler = Numpy(str(folder / "m.keras"), custom_weights=str(folder / "tenfold.weights.h5"))
    np.testing.assert_array_equal(numbers(handler.predict(ROWS)), expected(10))


@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_rejects_python_bytecode_and_names_the_layer(folder, name):
    path = str(folder / name)
    with pytest.raises(
        ModelLoadError, match="bytecode.* of the layer 'spy'.*getpid.*'safe_mode': False"
    ):
        Numpy(path).predict(ROWS)
    trusted = Numpy(path, load_model_args={"safe_mode": False, "custom_objects": {"os": os}})
    assert trusted.load_model().layers[-1].name == "spy"


def test_finds_bytecode_in_nested_models_and_in_the_keras_2_format(tmp_path):
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x, name="deep")])
    keras.Sequential([keras.Input((4,)), inner]).save(tmp_path / "nested.keras")
    with pytest.raises(ModelLoadError, match="the layer 'deep'"):
        Numpy(str(tmp_path / "nested.keras")).load_model()
    keras_2 = {"name": "old", "function": ["AAAA", None, None], "function_type": "lambda"}
    found = dict(find_bytecode({"layers": [{"config": keras_2}]}))
    assert found == {"the layer 'old'": "AAAA"}


def test_load_model_args_pass_custom_objects(folder):
    path = str(folder / "twice.keras")
    with pytest.raises(ModelLoadError, match="Twice.*'custom_objects': {'Name': Name}"):
        Numpy(path).load_model()
    handler = Numpy(path, load_model_args={"custom_objects": {"Twice": Twice}})
    np.testing.assert_array_equal(numbers(handler.predict(ROWS)), 2 * ROWS)
    with pytest.raises(
        ModelLoadError, match="custom_object.*Check the keywords in load_model_args"
    ):
        Numpy(path, load_model_args={"custom_object": {}}).load_model()


def test_errors_for_wrong_paths_say_what_to_pass(folder, tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"Did you mean '.*m.keras'"):
        Numpy(str(folder / "n.keras")).load_model()
    with pytest.raises(ModelLoadError, match="a file inside a SavedModel: pass its folder"):
        Numpy(str(folder / "m" / "saved_model.pb")).load_model()
    with pytest.raises(ModelLoadError, match="contains no saved_model.pb. .* model.export"):
        Numpy(str(folder / "m" / "variables")).load_model()
    shutil.copytree(folder / "m", tmp_path / "served" / "3")
    with pytest.raises(ModelLoadError, match=r"Pass the one inside: '.*served/3'"):
        Numpy(str(tmp_path / "served")).load_model()
    with pytest.raises(ModelLoadError, match=r"is a URL. .* kagglehub.model_download"):
        Numpy("https://tfhub.dev/google/nnlm/1").load_model()
    with pytest.raises(ModelLoadError, match="contains only weights. .*ModelType.SAVED_WEIGHTS"):
        Numpy(str(folder / "m.weights.h5")).load_model()
    (tmp_path / "ckpt.index").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="a TensorFlow checkpoint, .*save_weights"):
        Numpy(str(tmp_path / "ckpt"), ModelType.SAVED_WEIGHTS, dense).load_model()


@pytest.mark.parametrize("length", [0, 3, 100, -1])
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_rejects_a_truncated_file(folder, tmp_path, name, length):
    path = str(truncate(shutil.copy(folder / name, tmp_path) and tmp_path / name, length))
    arguments = (ModelType.SAVED_WEIGHTS, dense) if "weights" in name else ()
    with pytest.raises(ModelLoadError, match=f"{name}.* may be truncated"):
        Numpy(path, *arguments).load_model()


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_rejects_a_truncated_saved_model(folder, tmp_path, name):
    shutil.copytree(folder / "m", tmp_path / "m")
    truncate(tmp_path / "m" / name, -1)
    with pytest.raises(ModelLoadError, match="cannot be loaded .* may be truncated"):
        Numpy(str(tmp_path / "m")).load_model()


def test_rejects_weights_for_another_architecture(folder):
    handler = Numpy(str(folder / "m.weights.h5"), ModelType.SAVED_WEIGHTS, lambda: dense(units=5))
    with pytest.raises(ModelLoadError, match="no weights for this model .* architecture"):
        handler.load_model()


def test_names_the_later_keras_version_that_wrote_a_file(folder, tmp_path):
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


class InMemoryFolders(InMemory):
    """A file system that can list folders."""

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


def test_reads_models_from_any_beam_file_system(folder):
    for file in (folder / "m").rglob("*"):
        if file.is_file():
            InMemoryFolders.files[f"folders://b/m/{file.relative_to(folder / 'm').as_posix()}"] = (
                file.read_bytes()
            )
    for name in ("m.keras", "m.weights.h5"):
        InMemoryFolders.files[f"folders://b/{name}"] = (folder / name).read_bytes()
    for path, *options in (
        ("folders://b/m",),
        ("folders://b/m.keras",),
        ("folders://b/m.weights.h5", ModelType.SAVED_WEIGHTS, dense),
    ):
        np.testing.assert_array_equal(numbers(Numpy(path, *options).predict(ROWS)), expected())
