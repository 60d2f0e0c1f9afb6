"""Models on remote storage are downloaded completely and in one version, or an error explains why not."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, S3Options
from sklearn.dummy import DummyClassifier

from common import RUNNER, CollectElements, run
from in_memory_file_system import InMemory
from runinference import RunInference
from runinference.base import ModelHandler
from runinference.download import download_folder
from runinference.errors import ModelLoadError, ModelNotFoundError
from runinference.sklearn_inference import SklearnModelHandlerNumpy

PATH = "inmemory://bucket/model.pickle"
FOLDER = "inmemory://bucket/model"
ROW = np.zeros(1)


def dump_constant(value):
    """Return a pickled model that always predicts a value."""
    return pickle.dumps(DummyClassifier(strategy="constant", constant=value).fit([[0]], [value]))


@pytest.fixture
def store(monkeypatch):
    """The files and faults of a remote file system, with a model that predicts 1. Nothing waits."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(InMemory, "files", {PATH: dump_constant(1)})
    monkeypatch.setattr(InMemory, "faults", [])
    return InMemory


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def predict():
    return SklearnModelHandlerNumpy(PATH).predict([ROW])[0].inference


def cut(path, content):
    return content[: len(content) // 2]


def disconnect(path, content):
    raise ConnectionResetError("Connection reset by peer")


def replace_with(new, then=lambda path, content: content):
    """Return a fault that replaces all files with new ones while a file is read."""

    def fault(path, content):
        InMemory.files = new
        return then(path, content)

    return fault


@pytest.mark.parametrize("fault", [cut, disconnect])
def test_a_download_that_fails_begins_again(store, fault, temporary):
    store.faults += [fault, fault]
    assert predict() == 1
    assert not os.listdir(temporary)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (cut, r"has \d+ bytes, and \d+ bytes were received"),
        (disconnect, "Connection reset by peer"),
    ],
)
def test_a_download_that_always_fails_raises_an_error(store, fault, message, temporary):
    store.faults += [fault] * 3
    with pytest.raises(
        ModelLoadError, match=f"{PATH}.*cannot be downloaded.*{message}.*3 attempts"
    ):
        predict()
    assert not os.listdir(temporary)


def test_a_file_that_is_replaced_during_its_download_is_downloaded_again(store):
    store.faults.append(replace_with({PATH: dump_constant(2)}))
    assert predict() == 2


def test_a_file_that_is_replaced_by_each_download_raises_an_error(store):
    store.faults += [replace_with({PATH: dump_constant(value)}) for value in (2, 3, 4)]
    with pytest.raises(ModelLoadError, match="it was replaced during the download.*to a new path"):
        predict()


def test_a_file_that_cannot_be_copied_and_was_replaced_loads_as_the_new_one(store):
    store.faults.append(replace_with({PATH: dump_constant(2)}, then=disconnect))
    assert predict() == 2


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_folder_is_never_a_mix_of_two_versions(store, position):
    """The new version has files of the same sizes, one file less, and one more."""
    names = ["config.json", "shards/1.bin", "shards/2.bin"]
    store.files.update({f"{FOLDER}/{name}": b"old " + name.encode() for name in names})
    new = [*names[:2], "shards/3.bin"]
    replaced = {f"{FOLDER}/{name}": b"new " + name.encode() for name in new}
    store.faults += [lambda path, content: content] * position + [replace_with(replaced)]
    folder = download_folder(FOLDER)
    found = [os.path.join(parent, name) for parent, _, files in os.walk(folder) for name in files]
    contents = {os.path.relpath(path, folder): Path(path).read_bytes() for path in found}
    assert contents == {name: b"new " + name.encode() for name in new}


def test_a_folder_that_cannot_be_downloaded_leaves_nothing_behind(store, temporary):
    store.files[f"{FOLDER}/a"] = b"12"
    store.faults += [cut] * 3
    with pytest.raises(ModelLoadError, match="has 2 bytes, and 1 bytes were received"):
        download_folder(f"{FOLDER}/")
    assert not os.listdir(temporary)


def test_a_store_that_cannot_be_reached_raises_an_error_at_once(store, monkeypatch):
    def fail(self, path):
        calls.append(path)
        raise BeamIOError("exists() operation failed", {path: "Unable to locate credentials"})

    calls = []
    monkeypatch.setattr(InMemory, "exists", fail)
    with pytest.raises(ModelLoadError, match="Unable to locate credentials.*To fix this, check"):
        predict()
    assert calls == [PATH]


def test_a_missing_file_is_an_error_that_suggests_a_similar_name(store):
    with pytest.raises(ModelNotFoundError, match=rf"There is no file.*Did you mean '{PATH}'"):
        SklearnModelHandlerNumpy(PATH + "s").load_model()


def test_a_pipeline_with_an_unstable_store_has_the_right_results(store):
    store.faults += [cut, replace_with({PATH: dump_constant(2)})]
    results = run([ROW] * 3, RunInference(SklearnModelHandlerNumpy(PATH)))
    assert [result.inference for result in results] == [2, 2, 2]


class EndpointHandler(ModelHandler):
    """A handler that returns the S3 endpoint of the file systems where its model is loaded."""

    def load_model(self):
        options = FileSystems.get_filesystem("inmemory://any").options
        return options.view_as(S3Options).s3_endpoint_url

    def run_inference(self, batch, model, inference_args=None):
        return [model for _ in batch]


@pytest.mark.parametrize("use_subprocess", [False, True])
def test_file_systems_of_the_model_use_the_pipeline_options(use_subprocess):
    endpoint = "http://127.0.0.1:1"
    transform = RunInference(EndpointHandler())
    if use_subprocess:
        transform = transform.with_exception_handling(use_subprocess=True)
    output = []
    options = PipelineOptions([f"--s3_endpoint_url={endpoint}"])
    with beam.Pipeline(runner=RUNNER, options=options) as pipeline:
        results = pipeline | beam.Create([1]) | transform
        (results[0] if use_subprocess else results) | beam.ParDo(CollectElements(output))
    assert CollectElements.take(output) == [endpoint]
